"""Multi-head attention: the reference against torch and slopes; the kernel by contract."""

import dataclasses
import inspect
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given

from twofold.core.verify import claims
from twofold.core.verify.contract import compare
from twofold.core.verify.contracts import attention as whole
from twofold.core.verify.contracts import multi_head_attention as contract
from twofold.core.verify.derivatives import check_gradients
from twofold.reference import multi_head_attention, rotary
from twofold.reference.rotary import Rotary


def leaf(x):
    return None if x is None else torch.tensor(x, requires_grad=True)


def torch_mask(case, x, bias):
    """Return what torch adds to the scores, (B·H, M, N): the bias, or −∞ where masked."""
    pairs = (case.batch, case.heads, case.seqlen_q, case.keys)
    live = np.broadcast_to(True if x.mask is None else x.mask, pairs)
    if case.causal:
        shift = 0 if case.causal == "top-left" else case.keys - case.seqlen_q
        live = live & np.tri(*pairs[2:], shift, dtype=bool)
    if x.key_lengths is not None:
        live = live & (np.arange(case.keys) < x.key_lengths[:, None, None, None])
    added = torch.zeros(pairs, dtype=torch.float64) if bias is None else bias.expand(pairs)
    return torch.where(torch.tensor(live), added, -torch.inf).reshape(-1, *pairs[2:])


def repeated_rows(case):
    """Return each head's rows of the projection, repeating those of shared keys and values."""
    E, width = case.features, case.features // case.groups
    shared = np.arange(width).reshape(-1, case.head_dim).repeat(case.groups, axis=0).ravel()
    return np.concatenate((np.arange(E), E + shared, E + width + shared))


@given(contract.CONTRACT.cases)
def test_reference_is_torch(case):
    """Torch's own multi-head attention in float64: no further off than float64's own bound.

    Torch has NaN where a query has no key, so all queries see the first. It has neither rotary
    positions nor our dropout masks, and of what is done to scores only a bias; keys that heads
    share are repeated for it.
    """
    case = dataclasses.replace(
        case,
        dtype="float64",
        allow_tf32=False,
        dropout_p=0.0,
        rotary=None,
        softmax_scale=None,
        window_size=None,
        softcap=None,
        score_mod=None,
        alibi=None,
        sinks=False,
        block_mask=None,
        block_size=None,
        packed=False,
        causal=(case.keys >= case.seqlen_q or case.causal == "top-left") and case.causal,
    )
    x = contract.inputs(case)
    if x.call.mask is not None:
        mask = np.atleast_1d(x.call.mask)  # it may have no axes
        mask[..., :1] = True
        x = x._replace(call=x.call._replace(mask=mask.reshape(np.shape(x.call.mask))))
    if x.call.key_lengths is not None:
        x = x._replace(call=x.call._replace(key_lengths=np.maximum(x.call.key_lengths, 1)))
    leaves = {name: leaf(getattr(x, name)) for name in x._fields[:6]}
    leaves["bias"] = leaf(x.call.bias)
    source = leaves["x"] if x.context is None else leaves["context"]
    query, key = (a.transpose(0, 1) for a in (leaves["x"], source))
    rows = repeated_rows(case)
    out, _ = torch.nn.functional.multi_head_attention_forward(
        query,
        key,
        key,
        embed_dim_to_check=case.features,
        num_heads=case.heads,
        in_proj_weight=leaves["w_qkv"][rows],
        in_proj_bias=None if x.b_qkv is None else leaves["b_qkv"][rows],
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=leaves["w_out"],
        out_proj_bias=leaves["b_out"],
        need_weights=False,
        attn_mask=torch_mask(case, x.call, leaves["bias"]),
    )
    out = out.transpose(0, 1)
    (out * torch.tensor(x.dout)).sum().backward()
    theirs = {f"d{name}": a.grad for name, a in leaves.items() if a is not None}
    theirs["out"] = out.detach()
    with np.errstate(all="ignore"):
        bounds = contract.truth(case, x)
    assert theirs.keys() == bounds.keys()
    for name, bound in bounds.items():
        assert compare(name, theirs[name].numpy(), bound)[2] == ""


def turns(L):
    """Return cos and sin of positions 0 … L − 1, of 2 features."""
    return rotary.tables(np.arange(L), 2)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"causal": True, "rotary": (4, False)},
        {"key_lengths": np.array([3, 0]), "dropout_p": 0.3, "seed": 5, "rotary": (2, True)},
        {"context": True, "mask": np.arange(5 * 7).reshape(5, 7) % 3 > 0, "dropout_p": 0.1},
        {"num_kv_heads": 2, "rotary": (2, False)},
        {"num_kv_heads": 1, "context": True, "dropout_p": 0.1},
        {"context": True, "rotary": Rotary(*turns(5), *turns(7)), "window_size": (4, 1)},
        {
            "rotary": Rotary(*turns(5)), "softcap": 2.0, "alibi_slopes": np.array([0.5, 0.25, 0.1]),
            "block_mask": np.arange(6).reshape(3, 2) % 4 > 0, "block_size": (2, 3),
            "softmax_scale": 0.7,
        },
        {
            "packed": True, "causal": True, "max_seqlen_q": 4, "max_seqlen_k": 4,
            "cu_seqlens_q": np.array([0, 1, 5], "int32"),
            "cu_seqlens_k": np.array([0, 1, 5], "int32"),
        },
    ],
    ids=[
        "plain", "causal, rotary", "key lengths, dropout, rotary", "context, mask, dropout",
        "grouped, rotary", "one head of keys, context", "rotary of a context, window",
        "rotary as read, scores, blocks", "packed",
    ],
)  # fmt: skip
def test_gradients_are_slopes(how):
    rng = np.random.default_rng(0)
    B, M, N, E = 1 if how.get("packed") else 2, 5, 7, 12
    how = {"num_heads": 4 if "num_kv_heads" in how else 3} | how
    H, K = how["num_heads"], how.get("num_kv_heads", how["num_heads"])
    width = (H + 2 * K) * (E // H)
    arguments = {"x": rng.standard_normal((B, M, E)), "sinks": rng.standard_normal(H)}
    shapes = {"w_qkv": (width, E), "b_qkv": (width,), "w_out": (E, E), "b_out": (E,)}
    arguments |= {name: 0.5 * rng.standard_normal(shape) for name, shape in shapes.items()}
    if how.pop("context", False):
        arguments["context"] = rng.standard_normal((B, N, E))
    pairs = (M, N if "context" in arguments else M)
    if not how.pop("packed", False):
        arguments["bias"] = rng.standard_normal((H, *pairs))
    if "rotary" in how and not isinstance(how["rotary"], Rotary):
        rotary_dim, interleaved = how["rotary"]
        how["rotary"] = (*rotary.tables(np.arange(M), rotary_dim), interleaved)
    dout = rng.standard_normal((B, M, E))

    def value(**arguments):
        return float((multi_head_attention.forward(**arguments, **how)[0] * dout).sum())

    cache = multi_head_attention.forward(**arguments, **how)[1]
    gradients = multi_head_attention.backward(dout, cache)
    check_gradients(value, arguments, {n: getattr(gradients, f"d{n}") for n in arguments}, rng)


def test_one_head_and_one_key_is_two_projections():
    """A query with one key attends only to it: out = (x·W_vᵀ + b_v)·W_outᵀ + b_out, in integers.

    Small integers, so that float64 is exact and there is nothing to round.
    """
    rng = np.random.default_rng(0)
    x, w_out, b_out = (rng.integers(-4, 5, s).astype(float) for s in ((2, 1, 3), (3, 3), (3,)))
    w_qkv, b_qkv = (rng.integers(-4, 5, s).astype(float) for s in ((9, 3), (9,)))
    out, _ = multi_head_attention.forward(x, w_qkv, b_qkv, w_out, b_out, num_heads=1)
    values = x @ w_qkv[6:].T + b_qkv[6:]
    assert np.array_equal(out, values @ w_out.T + b_out)


@pytest.mark.parametrize("seqlen_k", [None, 7])
def test_as_many_heads_of_keys_as_of_queries_are_the_same_bits(triton, seqlen_k):
    """`num_kv_heads` of None means `num_heads`."""
    x = contract.inputs(contract.Case(seqlen_q=5, seqlen_k=seqlen_k, heads=3, head_dim=4))
    placed = [triton.asarray(a, "float32") for a in x[:5]]
    context = None if x.context is None else triton.asarray(x.context, "float32")
    how = {"num_heads": 3, "context": context}
    found = []
    for kv in (None, 3):
        out, cache = triton.multi_head_attention.forward(*placed, num_kv_heads=kv, **how)
        gradients = triton.multi_head_attention.backward(out, cache)
        found.append([out, *(g for g in gradients if g is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


PARTS = {
    "x": ("dx",), "context": ("dcontext",), "bias": ("dbias",),
    "weights": ("dw_qkv", "db_qkv", "dw_out", "db_out"),
}  # fmt: skip


@pytest.mark.parametrize("seqlen_k", [None, 7])
def test_gradients_that_nobody_reads_change_no_other(reference, triton, seqlen_k):
    x = contract.inputs(contract.Case(seqlen_q=5, seqlen_k=seqlen_k, bias="BHMN"))
    for side in (reference, triton):
        *placed, context, bias = (
            None if a is None else side.asarray(a, "float32")
            for a in (*x[:5], x.context, x.call.bias)
        )
        out, cache = side.multi_head_attention.forward(
            *placed, num_heads=2, context=context, bias=bias
        )
        whole = side.multi_head_attention.backward(out, cache)._asdict()
        for wanted in itertools.product((False, True), repeat=len(PARTS)):
            asked = {f"of_{name}": read for name, read in zip(PARTS, wanted, strict=True)}
            part = side.multi_head_attention.backward(out, cache, **asked)._asdict()
            read = {n for name, names in PARTS.items() if asked[f"of_{name}"] for n in names}
            for name, one in whole.items():
                assert (part[name] is None) == (one is None or name not in read), name
                if part[name] is not None:
                    assert np.array_equal(side.to_numpy(part[name]), side.to_numpy(one)), name


def test_nothing_receives_gradients_of_weights_that_nobody_reads(reference, triton):
    x = contract.inputs(contract.Case())
    for side in (reference, triton):
        placed = [side.asarray(a, "float32") for a in x[:5]]
        out, cache = side.multi_head_attention.forward(*placed, num_heads=2)
        for i, name in enumerate(PARTS["weights"]):
            into = [None if i != j else y for j, y in enumerate(placed[1:])]
            with pytest.raises(ValueError, match=rf"^into's {name} is a \w+; it must be None: the"):
                side.multi_head_attention.backward(out, cache, of_weights=False, into=into)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("seqlen_k", [None, 7])
def test_heads_are_views(triton, seqlen_k, groups):
    """The kernels read q, k and v in the packed projection and lay the heads side by side.

    Keys that heads share are one head.
    """
    case = contract.Case(seqlen_q=5, seqlen_k=seqlen_k, heads=4, groups=groups, head_dim=4)
    x = contract.inputs(case)
    context = None if x.context is None else triton.asarray(x.context, "float32")
    placed = (triton.asarray(a, "float32") for a in x[:5])
    how = {"num_heads": 4, "num_kv_heads": 4 // groups, "context": context}
    _, cache = triton.multi_head_attention.forward(*placed, **how)
    q, k, v = cache.attention.q, cache.attention.k, cache.attention.v
    width = 2 * case.features // groups + (case.features if seqlen_k is None else 0)
    assert k.shape == v.shape == (1, 4 // groups, case.keys, 4)
    assert k.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
    assert (q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()) == (seqlen_k is None)
    assert k.stride() == v.stride() == (case.keys * width, 4, width, 1)
    assert cache.output.x.data_ptr() == cache.attention.out.data_ptr()


@pytest.mark.parametrize("case", contract.EVERYTHING, ids=str)
def test_all_that_attention_takes_goes_between_projections(side, case):
    """It equals projection, attention with the same arguments, projection."""
    taken, mine = (
        inspect.signature(x.forward).parameters for x in (side.attention, side.multi_head_attention)
    )
    assert taken.keys() - {"q", "k", "v", "tile"} <= mine.keys()
    x, (H, K, D) = contract.inputs(case), (case.heads, case.heads // case.groups, case.head_dim)
    given, w_qkv, b_qkv, w_out, b_out = (side.asarray(a, "float32") for a in x[:5])
    context = given if x.context is None else side.asarray(x.context, "float32")

    def heads(a, begin, end):
        rows = slice(begin * D, end * D)
        y, _ = side.linear.forward(a, w_qkv[rows], b_qkv[rows])
        return y.reshape(*a.shape[:2], -1, D).swapaxes(1, 2)

    options = whole.placed(side, contract.whole(case), x.call)._asdict()
    unused = {name for name, a in options.items() if a is None}
    packing = {"cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"}
    assert unused <= {"key_lengths", "score_mod", *packing}
    out, _ = side.attention.forward(
        heads(given, 0, H), heads(context, H, H + K), heads(context, H + K, H + 2 * K), **options
    )
    out, _ = side.linear.forward(out.swapaxes(1, 2).reshape(*given.shape), w_out, b_out)
    found, theirs = side.to_numpy(contract.run(side, case, x)["out"]), side.to_numpy(out)
    claims.agree("out", found, theirs, contract.truth(case, x)["out"], "of its parts")


def ones(*shape):
    """Return ones in a dtype that kernels take: attention refuses after the first projection."""
    return np.ones(shape, np.float32)


X, W, B = ones(2, 5, 6), ones(18, 6), ones(18)
GIVEN = {"x": X, "w_qkv": W, "b_qkv": B, "w_out": W[:6], "b_out": B[:6], "num_heads": 3}
TABLES = (ones(5, 1), ones(5, 1), False)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"x": np.ones((2, 5, 6), int)}, TypeError, "x has dtype int64; it must be one of float16"),
        ({"w_qkv": W.astype("f2")}, TypeError, "w_qkv has dtype float16; it must have the dtype"),
        ({"x": ones(5, 6)}, ValueError, "x.shape is (5, 6); it must be of rank 3"),
        ({"x": ones(2, 0, 6)}, ValueError, "x.shape is (2, 0, 6); it must be"),
        ({"num_heads": 0}, ValueError, "num_heads is 0; it must be at least 1"),
        ({"num_heads": 4}, ValueError, "num_heads is 4; it must be a divisor of x.shape[-1], 6"),
        ({"num_kv_heads": 0}, ValueError, "num_kv_heads is 0; it must be at least 1"),
        ({"num_kv_heads": 2}, ValueError, "num_kv_heads is 2; it must be a divisor of num_heads, "),
        ({"num_kv_heads": 6}, ValueError, "num_kv_heads is 6; it must be a divisor of num_heads, "),
        ({"num_kv_heads": 1}, ValueError, "w_qkv.shape is (18, 6); it must be (10, 6)"),
        (
            {"num_kv_heads": 1, "w_qkv": W[:10]},
            ValueError,
            "b_qkv.shape is (18,); it must be (10,)",
        ),
        ({"w_qkv": W[:12]}, ValueError, "w_qkv.shape is (12, 6); it must be (18, 6)"),
        ({"w_out": W}, ValueError, "w_out.shape is (18, 6); it must be (6, 6)"),
        ({"b_qkv": B[:6]}, ValueError, "b_qkv.shape is (6,); it must be (18,)"),
        ({"b_out": B}, ValueError, "b_out.shape is (18,); it must be (6,)"),
        ({"context": X[:1]}, ValueError, "context.shape is (1, 5, 6); it must be (2, N, 6)"),
        (
            {"context": X, "rotary": TABLES},
            ValueError,
            "rotary is a tuple with context; it must be a Rotary",
        ),
        ({"rotary": TABLES[:2]}, TypeError, "rotary is a tuple of 2; it must be (cos, sin, inter"),
        ({"rotary": "half"}, TypeError, "rotary is a str; it must be (cos, sin, interleaved), a "),
        ({"rotary": (*TABLES[:2], None)}, TypeError, "rotary is a tuple of 3; it must be (cos,"),
        ({"num_heads": 3.0}, TypeError, "num_heads is a float; it must be an int"),
        ({"rotary": Rotary(*TABLES[:2], X)}, ValueError, "rotary.k_sin is None; it must be given"),
        ({"bias": ones(5, 6)}, ValueError, "bias.shape is (5, 6); it must be broadcastable"),
        ({"cu_seqlens_q": np.ones(2, "int32")}, ValueError, "cu_seqlens_k is None; it must be gi"),
        ({"mask": np.ones((7, 5), bool)}, ValueError, "mask.shape is (7, 5); it must be broad"),
        ({"key_lengths": np.ones(3, int)}, ValueError, "key_lengths.shape is (3,); it must be (2,"),
        ({"dropout_p": 1.0}, ValueError, "dropout_p is 1.0; it must be at least 0 and below 1"),
        ({"seed": -1}, ValueError, "seed is -1; it must be at least 0 and below 2**63"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, dict) else "",
)
def test_bad_input_is_refused(both_refuse, changed, error, words):
    both_refuse("multi_head_attention", GIVEN | changed, error, words)
