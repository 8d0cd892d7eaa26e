"""Cross-entropy: the reference against torch, differences and mpmath; the kernel by contract."""

import dataclasses
import re

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given

from twofold.core.verify import rounding
from twofold.core.verify.contract import compare, truths
from twofold.core.verify.contracts import softmax_cross_entropy as contract
from twofold.core.verify.derivatives import check_gradients
from twofold.reference import softmax_cross_entropy


def test_every_tile_is_pinned_in_one_block_and_in_several(triton):
    tiles = triton.softmax_cross_entropy.TILES
    pinned = [(c.tile, c.classes) for c in contract.CONTRACT.pinned if c.tile is not None]
    assert {tile for tile, _ in pinned} == set(range(len(tiles)))
    assert all(
        any(t == i and c > tile.block_c for t, c in pinned) for i, (_, tile) in enumerate(tiles)
    )


@given(contract.CONTRACT.cases)
def test_reference_is_torch(case):
    """Torch's log-softmax, differentiated by torch: no further off than float64's own bound."""
    case = dataclasses.replace(case, dtype="float64", masked=False)
    x = contract.inputs(case)
    logits = torch.tensor(x.logits, requires_grad=True)
    log_p = torch.log_softmax(logits, 1)
    t, counted = contract._targets(case, x)
    loss = -(torch.tensor(t.value) * log_p).sum(1)
    if case.reduction != "none":
        loss = loss.sum()
    if case.reduction == "mean":
        loss = loss / counted.value.item() if counted.value else 0.0 * loss
    loss.backward(torch.tensor(x.dloss))
    theirs = {"loss": loss.detach(), "dlogits": logits.grad}
    for name, bound in contract.truth(case).items():
        assert compare(name, theirs[name].numpy(), bound)[2] == ""


@pytest.mark.parametrize("reduction", softmax_cross_entropy.REDUCTIONS)
@pytest.mark.parametrize("probabilities", [False, True])
def test_conventions_are_those_of_torch(reduction, probabilities):
    """The meaning of smoothing, weights, ignored rows and the mean; accuracy is tested above."""
    case = contract.Case(
        dtype="float64", rows=9, classes=5, probabilities=probabilities, ignored=0.3, weight=True,
        label_smoothing=0.2, reduction=reduction, seed=4,
    )  # fmt: skip
    x = contract.inputs(case)
    ours, _ = softmax_cross_entropy.forward(
        x.logits, x.targets, weight=x.weight, label_smoothing=case.label_smoothing,
        ignore_index=contract.IGNORE_INDEX, reduction=reduction,
    )  # fmt: skip
    theirs = torch.nn.functional.cross_entropy(
        *(torch.tensor(a) for a in (x.logits, x.targets, x.weight)),
        label_smoothing=case.label_smoothing,
        ignore_index=contract.IGNORE_INDEX,
        reduction=reduction,
    )
    # torch sums the smoothed part separately, which doubles the roundings
    bound = contract.truth(case)["loss"]
    bound = dataclasses.replace(bound, value=ours, error=2 * bound.error)
    assert compare("loss", theirs.numpy(), bound)[2] == ""


@pytest.mark.parametrize("reduction", softmax_cross_entropy.REDUCTIONS)
@pytest.mark.parametrize("probabilities", [False, True])
def test_gradients_are_slopes(reduction, probabilities):
    rng = np.random.default_rng(0)
    logits, weight = rng.standard_normal((4, 6)), rng.random(6)
    dloss = rng.standard_normal(4) if reduction == "none" else np.array(1.7)
    targets = rng.dirichlet(np.ones(6), 4) if probabilities else np.array([5, 0, -100, 2])
    how = {"weight": weight, "label_smoothing": 0.1, "reduction": reduction}

    def value(logits):
        return float((softmax_cross_entropy.forward(logits, targets, **how)[0] * dloss).sum())

    cache = softmax_cross_entropy.forward(logits, targets, **how)[1]
    dlogits = softmax_cross_entropy.backward(dloss, cache).dlogits
    check_gradients(value, {"logits": logits}, {"logits": dlogits}, rng)


def test_forward_is_the_formula_at_high_precision():
    """Logits of 1e4, where exp by itself over- and underflows."""
    x, target, epsilon = [1e4, 9990.5, -1e4, 9999.0], 1, 0.1
    with mpmath.workdps(50):
        lse = mpmath.log(mpmath.fsum(mpmath.exp(mpmath.mpf(a)) for a in x))
        smooth = [mpmath.mpf(epsilon) / 4 + (i == target) * (1 - epsilon) for i in range(4)]
        truth = float(mpmath.fsum(t * (lse - a) for t, a in zip(smooth, x, strict=True)))
    loss, _ = softmax_cross_entropy.forward(
        np.array([x]), np.array([target]), label_smoothing=epsilon
    )
    on = rounding.machine("float64")
    shifted = rounding.exact(np.array([x]), on) - 1e4
    total = rounding.exp(shifted).sum(-1)
    t = rounding.exact(np.array([[float(a) for a in smooth]]), on) * 1.0
    bound = (t * (rounding.log(total) - shifted)).sum(-1)[0]
    assert compare("loss", loss, dataclasses.replace(bound, value=np.array(truth)))[2] == ""


@pytest.mark.parametrize("index", [-1, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_an_index_out_of_range_is_an_error_or_nan(reference, triton, index, weighted):
    logits, targets = np.zeros((3, 4), np.float32), np.array([1, index, 2])
    how = {"weight": np.ones(4, np.float32)} if weighted else {}
    with pytest.raises(IndexError, match=rf"targets\[1\] is {index}; it must be at least 0"):
        reference.softmax_cross_entropy.forward(logits, targets, **how)
    how = {name: triton.asarray(a) for name, a in how.items()}
    loss, cache = triton.softmax_cross_entropy.forward(
        triton.asarray(logits), triton.asarray(targets), reduction="none", **how
    )
    assert np.isnan(triton.to_numpy(loss)).tolist() == [False, True, False]
    assert np.isnan(triton.to_numpy(cache.dlogits)).any(axis=1).tolist() == [False, True, False]
    for reduction in ("mean", "sum"):
        loss, _ = triton.softmax_cross_entropy.forward(
            triton.asarray(logits), triton.asarray(targets), reduction=reduction, **how
        )
        assert np.isnan(triton.to_numpy(loss))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("x", [np.inf, -np.inf, np.nan])
def test_a_row_without_weights_is_nan_and_nobody_else(reference, triton, x):
    logits = np.array([[x, -np.inf], [1.0, 2.0]])
    for side in (reference, triton):
        loss, cache = side.softmax_cross_entropy.forward(
            side.asarray(logits, "float32"), side.asarray(np.array([1, 1])), reduction="none"
        )
        dlogits = side.softmax_cross_entropy.backward(side.asarray(np.ones(2), "float32"), cache)
        assert np.isnan(side.to_numpy(loss)).tolist() == [True, False]
        assert np.isnan(side.to_numpy(dlogits.dlogits)).all(1).tolist() == [True, False]


def test_where_no_row_counts_the_mean_is_0(reference, triton):
    for side in (reference, triton):
        loss, cache = side.softmax_cross_entropy.forward(
            side.asarray(np.ones((2, 3)), "float32"), side.asarray(np.full(2, -100))
        )
        assert side.to_numpy(loss) == 0.0
        assert not side.to_numpy(cache.dlogits).any()


def test_where_the_weights_of_all_targets_are_0_the_mean_is_0(reference, triton):
    """Only smoothing gives these rows a loss, and the mean would divide it by 0."""
    for side in (reference, triton):
        loss, cache = side.softmax_cross_entropy.forward(
            side.asarray(np.ones((2, 3)), "float32"),
            side.asarray(np.array([1, 1])),
            weight=side.asarray(np.array([1.0, 0.0, 1.0]), "float32"),
            label_smoothing=0.5,
        )
        assert side.to_numpy(loss) == 0.0
        assert not side.to_numpy(cache.dlogits).any()


X, Y = np.ones((2, 3)), np.zeros(2, int)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        (dict(logits=X.astype(int)), TypeError, "logits has dtype int64; it must be one of"),
        (dict(logits=np.ones(3)), ValueError, "logits.shape is (3,); it must be of rank 2"),
        (dict(logits=np.ones((2, 0))), ValueError, "logits.shape is (2, 0); it must be (R, C)"),
        (dict(targets=np.zeros(3, int)), ValueError, "targets.shape is (3,); it must be (2,)"),
        (dict(targets=X.T.copy()), ValueError, "targets.shape is (3, 2); it must be (2, 3)"),
        (dict(targets=X.astype("f4")), TypeError, "targets has dtype float32; it must have the"),
        (dict(targets=Y > 0), TypeError, "targets has dtype bool; it must be int32 or int64 of"),
        (dict(targets=Y.astype("i2")), TypeError, "targets has dtype int16; it must be int32 or"),
        (dict(targets=[0, 1]), TypeError, "targets is a list; it must be an array"),
        (dict(weight=np.ones(2)), ValueError, "weight.shape is (2,); it must be (3,)"),
        (dict(label_smoothing=1.5), ValueError, "label_smoothing is 1.5; it must be from 0 to 1"),
        (dict(ignore_index=1.0), TypeError, "ignore_index is a float; it must be an int"),
        (dict(reduction="max"), ValueError, "reduction is 'max'; it must be one of 'mean'"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, dict) else "",
)
def test_bad_input_is_refused(both_refuse, changed, error, words):
    both_refuse("softmax_cross_entropy", {"logits": X, "targets": Y} | changed, error, words)


@pytest.mark.parametrize(
    ("dloss", "error", "words"),
    [
        (None, TypeError, "dloss is a NoneType; it must be a number"),
        ([1.0], TypeError, "dloss is a list; it must be a number"),
        (np.ones(1), ValueError, "dloss.shape is (1,); it must be that of the loss, ()"),
        (np.array(1j), TypeError, "dloss has dtype complex128; it must be one of float16, b"),
        (np.array(True), TypeError, "dloss has dtype bool; it must be one of float16, bfloat16"),
        (1j, TypeError, "dloss is a complex; it must be a number"),
        (X, ValueError, "dloss.shape is (2, 3); it must be that of the loss, ()"),
    ],
)
def test_what_is_no_gradient_of_the_loss_is_refused(reference, triton, dloss, error, words):
    for side in (reference, triton):
        _, cache = side.softmax_cross_entropy.forward(side.asarray(X, "float32"), side.asarray(Y))
        given = side.asarray(dloss) if isinstance(dloss, np.ndarray) else dloss
        with pytest.raises(error, match=re.escape(words)):
            side.softmax_cross_entropy.backward(given, cache)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_without_its_gradient_the_loss_has_the_same_bits(
    reference, triton, reduction, label_smoothing
):
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((5, 37)), rng.integers(0, 37, 5)
    how = {"reduction": reduction, "label_smoothing": label_smoothing}
    for side in (reference, triton):
        given = side.asarray(logits, "float32"), side.asarray(targets)
        (loss, _), (same, cache) = (
            side.softmax_cross_entropy.forward(*given, **how, keep=keep) for keep in (True, False)
        )
        assert side.to_numpy(loss).tobytes() == side.to_numpy(same).tobytes()
        with pytest.raises(ValueError, match=r"^cache.dlogits is None; it must be kept, as for"):
            side.softmax_cross_entropy.backward(1.0, cache)


@pytest.mark.parametrize("ignored", [0, 2, -100])
def test_any_class_can_be_ignored(reference, triton, ignored):
    logits = np.random.default_rng(0).standard_normal((5, 3)).astype("float32")
    targets = np.array([0, 2, ignored, 1, ignored])
    wanted = torch.nn.functional.cross_entropy(
        torch.tensor(logits).double(), torch.tensor(targets), ignore_index=ignored
    )
    for side in (reference, triton):
        loss, cache = side.softmax_cross_entropy.forward(
            side.asarray(logits), side.asarray(targets), ignore_index=ignored
        )
        assert abs(float(loss) - float(wanted)) < 1e-6
        left_out = (side.to_numpy(cache.dlogits) == 0).all(axis=1)
        assert np.array_equal(left_out, targets == ignored)


def test_masked_targets_of_negative_weight_make_the_loss_fall_without_end(reference, triton):
    """And with positive ones beside them it is NaN, on both sides as in the truth."""
    logits = np.array([[0.0, 1.0, -np.inf, -np.inf]])
    for weight, loss in (([1, 1, -1, -1], -np.inf), ([1, 1, 1, -1], np.nan)):
        case = contract.Case(rows=1, classes=4, weight=True, label_smoothing=0.1, reduction="sum")
        given = contract.Inputs(logits, np.array([0]), np.array(weight, float), np.array(1.0))
        truth = truths(contract.CONTRACT, case, given)
        assert np.array_equal(truth["loss"].value, loss, equal_nan=True)
        for side in (reference, triton):
            with np.errstate(invalid="ignore"):
                found = contract.run(side, case, given)
            assert compare("loss", side.to_numpy(found["loss"]), truth["loss"])[2] == ""
