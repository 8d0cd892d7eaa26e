"""Training in bfloat16 with float32 parameters: what is rounded when, and what never is."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from test_cli import TINY, call, table

from twofold.core import ops
from twofold.core.model import bert
from twofold.core.model.classifier import Classifier
from twofold.core.model.config import ClassifierConfig
from twofold.core.model.seeds import dropout_seeds
from twofold.core.training.batches import collate
from twofold.core.training.recipe import Recipe
from twofold.core.training.run import Run
from twofold.core.training.trainer import Trainer

SMALL = {"num_classes": 3, "max_length": 5, "d_model": 16, "num_heads": 2, "d_ff": 24}
CONFIGS = {
    "tokens": ClassifierConfig(input_size=19, **SMALL),
    "patches": ClassifierConfig(input="patches", input_size=5, positions="sinusoidal", **SMALL),
    "BERT": ClassifierConfig(
        input_size=19, token_types=2, **SMALL, **bert.ARCHITECTURE | {"activation": "gelu"}
    ),
}
HALF = Recipe(precision="bfloat16", lr=1e-2, average=0.9, seed=5)


def batch(config, examples=5, graded=False):
    """Return inputs and targets."""
    rng = np.random.default_rng(2)
    lengths = rng.integers(1, config.max_length + 1, examples)
    if config.input == "patches":
        inputs = [rng.standard_normal((n, config.input_size)).astype(np.float32) for n in lengths]
    else:
        inputs = [rng.integers(0, config.input_size, n) for n in lengths]
    if graded:
        right = rng.dirichlet(np.ones(config.num_classes), examples)
        return inputs, right.astype(np.float32)
    return inputs, rng.integers(0, config.num_classes, examples)


def trained(side, config, recipe, steps, **how):
    """Return a trainer after some steps on one batch, and its losses."""
    trainer, losses = Trainer(Classifier(config, side, seed=1), recipe), []
    for step in range(1, steps + 1):
        trainer.step(*batch(config, **how), step, recipe.lr)
        losses.append(trainer.loss)
    return trainer, losses


def bits(trainer):
    return {name: x.tobytes() for name, x in trainer.tensors().items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_is_one_of_rounded_parameters_that_float32_ones_take(triton, name):
    """Bit for bit the step that is written out here."""
    config, steps, graded = CONFIGS[name], 2, name == "tokens"
    inputs, targets = batch(config, graded=graded)
    trainer, losses = trained(triton, config, HALF, steps, graded=graded)
    flat = Classifier(config, triton, seed=1).flat
    layout = trainer.model.layout
    m, v = torch.zeros_like(flat), torch.zeros_like(flat)
    for step in range(1, steps + 1):
        model = Classifier(config, triton, flat.to(torch.bfloat16), dtype="bfloat16")
        total, loss = torch.zeros_like(flat), 0.0
        for part in range(2):
            seeds = dropout_seeds(5, step, part, config.sites)
            padded, lengths = collate(inputs[part::2])
            dtype = "bfloat16" if config.input == "patches" else None
            logits, cache = model.forward(
                triton.asarray(padded, dtype), triton.asarray(lengths), seeds
            )
            assert logits.dtype == torch.bfloat16
            there = triton.asarray(targets[part::2])
            of, saved = triton.softmax_cross_entropy.forward(logits.float(), there, reduction="sum")
            share = triton.asarray(np.float32(1 / len(inputs)))
            dlogits = triton.softmax_cross_entropy.backward(share, saved).dlogits
            grads = torch.zeros_like(flat)
            model.backward(dlogits.to(torch.bfloat16), cache, layout.views(grads))
            total += grads
            loss += float(of) * (1 / len(inputs))
        assert loss == losses[step - 1]
        norm = triton.optimizers.global_norm(total)
        triton.optimizers.adam(
            flat, total, m, v, step=step, lr=HALF.lr, weight_decay=HALF.weight_decay,
            decay_numel=layout.decay_numel, grad_norm=norm, max_norm=HALF.max_norm,
        )  # fmt: skip
    for found, expected in ((trainer.model.flat, flat), *zip(trainer.optimizer.state.values(),
                                                             (m, v), strict=True)):  # fmt: skip
        assert torch.equal(found, expected)


def test_only_the_copy_is_rounded_and_it_follows_every_step(triton):
    config, seen = CONFIGS["tokens"], set()
    trainer = Trainer(Classifier(config, triton, seed=1), HALF)
    for step in range(3):
        if step > 0:
            trainer.step(*batch(config), step, HALF.lr)
        flat = trainer.working.flat
        assert flat.dtype == torch.bfloat16
        assert torch.equal(flat, trainer.model.flat.to(torch.bfloat16))
        assert not torch.equal(flat.float(), trainer.model.flat)
        seen.add(bytes(flat.view(torch.uint8).cpu().numpy()))
        tensors = trainer.tensors()
        assert tensors.keys() == {"params", "average", "m", "v"}
        assert all(x.dtype == np.float32 for x in tensors.values())
        assert trainer.average.flat.dtype == torch.float32
    assert len(seen) == 3
    assert {x.dtype for x in trainer.working._rotary} == {torch.float32}  # angles are no weights


def test_a_restored_trainer_takes_the_same_steps(triton):
    config = CONFIGS["tokens"]
    whole, _ = trained(triton, config, HALF, 1)
    other = Trainer(Classifier(config, triton, seed=9), HALF)
    other.restore(whole.tensors())
    for trainer in (whole, other):
        trainer.step(*batch(config), 2, HALF.lr)
    assert bits(other) == bits(whole)


def test_what_is_frozen_is_rounded_once(triton):
    recipe = dataclasses.replace(HALF, frozen=1, layer_decay=0.5)
    trainer, _ = trained(triton, CONFIGS["tokens"], recipe, 1)
    begun = Classifier(CONFIGS["tokens"], triton, seed=1)
    for name, x in trainer.working.params.items():
        assert torch.equal(x, trainer.model.params[name].to(torch.bfloat16))
        same = torch.equal(trainer.model.params[name], begun.params[name])
        assert same == (begun.part(name) < 1), name


def test_the_loss_falls_as_in_float32(triton):
    """Without dropout, on one batch repeatedly; rounding costs far less than a step gains."""
    config = dataclasses.replace(
        CONFIGS["tokens"], dropout=0.0, attention_dropout=0.0, embedding_dropout=0.0
    )
    losses = {}
    for precision in ("float32", "bfloat16"):
        recipe = dataclasses.replace(HALF, precision=precision, average=0.0, parts=1)
        _, losses[precision] = trained(triton, config, recipe, 8)
    single, half = (np.array(x) for x in losses.values())
    assert single[-1] < 0.5 * single[0] and half[-1] < 0.5 * half[0]
    assert not np.array_equal(single, half)
    assert np.abs(half - single).max() < 0.1 * (single[0] - single[-1])


def test_the_numpy_side_refuses_it_by_name(reference, tmp_path):
    words = "precision is 'bfloat16'; it must be 'float32' on the NumPy side"
    with pytest.raises(ValueError, match=words):
        Trainer(Classifier(CONFIGS["tokens"], reference), HALF)
    file, out = table(tmp_path / "reviews.csv"), tmp_path / "run"
    how = ["train", "--data", file, "--out", out, "--precision", "bfloat16", *TINY]
    assert words in call(*how, status=2)
    assert not out.exists()
    with pytest.raises(ValueError, match="precision is 'float16'; it must be one of 'float32', 'b"):
        Recipe(precision="float16")


def test_a_run_in_bfloat16_leaves_a_float32_model(triton, tmp_path):
    file, out = table(tmp_path / "reviews.csv"), tmp_path / "run"
    how = [*TINY[:-4], "--side", "triton", "--epochs", "1", "--batch-size", "64", "--no-refit"]
    call("train", "--data", file, "--out", out, "--precision", "bfloat16", *how)
    assert json.loads((out / "run.json").read_text())["recipe"]["precision"] == "bfloat16"
    model = Run.open(out).load_model(ops.load("reference"))
    assert model.flat.dtype == np.float32
    rounded = torch.from_numpy(model.flat).to(torch.bfloat16).float()
    assert not np.array_equal(rounded.numpy(), model.flat)
    call("evaluate", out, "--side", "reference")
