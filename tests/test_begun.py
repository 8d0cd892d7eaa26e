"""What a run starts with: the options given, what its data prefer, and short forms."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from test_cli import table
from test_finetune import small  # noqa: F401, a fixture
from test_training import toy

from twofold.core import pretrained
from twofold.core.commands import common, finetune, train, training
from twofold.core.data.datasets import Dataset
from twofold.core.data.fetch import sha256_of
from twofold.core.model.config import ClassifierConfig
from twofold.core.training import settings
from twofold.core.training.processes import ALONE
from twofold.core.training.recipe import Recipe


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Return the settings a command would give its run, and the codec."""
    file = table(tmp_path / "reviews.csv")

    def begun(command, **given):
        seen = {}
        how = {"data": str(file), "side": "reference", "quick": False} | given
        with monkeypatch.context() as patch:
            patch.setattr(command, "begun", lambda *made, **own: seen.update(own, made=made))
            command._begin(how, ALONE)
        _, data, codec = seen.pop("made")
        return SimpleNamespace(c=codec, examples=len(data.train_y), **seen)

    return begun


def test_fine_tuning_begins_with_what_was_asked_for(begin, small, monkeypatch):  # noqa: F811
    monkeypatch.chdir(small.parent)
    monkeypatch.setattr(settings, "QUICK_EXAMPLES", 9)

    def found(**given):
        return begin(finetune, init=small.name, **given)

    run, model = found(), pretrained.load(small, labels=["no", "yes"]).model.config
    usual = {"epochs": 2, "batch_size": 32, "lr": 5e-5, "warmup": 0.1, "weight_decay": 0.01}
    usual |= {"word_dropout": 0.0, "average": 0.0, "frozen": 1, "refit": False}
    assert run.recipe == Recipe(**usual) and run.model == model
    assert (run.init, run.longest, run.c.max_length) == (str(small), 12, 12)
    assert run.init_sha256 == sha256_of(small / "model.safetensors")
    assert found(quick=True).recipe == Recipe(**usual | {"epochs": 1})
    run = found(quick=True, epochs=3, longest=5)
    assert run.examples == 9 and run.recipe.epochs == 3 and run.longest == run.c.max_length == 5
    run = found(dropout=0.3)
    assert run.model == dataclasses.replace(model, dropout=0.3, embedding_dropout=0.3)
    changed = {"attention_dropout": 0.4, "pooling": "max"}
    assert found(**changed).model == dataclasses.replace(model, pooler=False, **changed)


@pytest.mark.parametrize(
    ("theirs", "missing", "words"),
    [
        (("x", "y"), set(), "the head is drawn: the model's classes are x, y; those of the data"),
        (("b", "a"), set(), ""),
        (("x", "y"), {"classifier.weight"}, ""),
    ],
)
def test_a_head_that_is_drawn_though_there_was_one_is_said(capsys, theirs, missing, words):
    finetune._say_drawn(SimpleNamespace(labels=theirs, missing=missing), ("a", "b"))
    assert capsys.readouterr().err == (f"{words} are a, b\n" if words else "")


def test_training_begins_with_what_was_asked_for(begin, monkeypatch):
    monkeypatch.setattr(settings, "QUICK_EXAMPLES", 9)
    run = begin(train)
    assert (
        run.examples > 9 and run.recipe == Recipe() and (run.tokenizer, run.patch) == ("words", 2)
    )
    assert run.model.num_classes == 2
    run = begin(train, quick=True)
    assert run.examples == 9 and run.recipe == Recipe(epochs=4, refit=False)
    run = begin(train, quick=True, epochs=3, refit=True, word_dropout=0.0, tokenizer="bpe")
    assert run.recipe == Recipe(epochs=3, refit=True, word_dropout=0.0) and run.tokenizer == "bpe"
    assert type(run.c.tokenizer).__name__ == "BPETokenizer"
    given = {"num_layers": 3, "d_model": 24, "num_heads": 3, "pooling": "max", "dropout": 0.0}
    run = begin(train, **given)
    assert given.items() <= dataclasses.asdict(run.model).items()
    own = {"recipe": {"epochs": 9, "lr": 0.5}, "model": {"d_ff": 48, "num_layers": 2}}
    monkeypatch.setattr(train, "preferred", lambda data, part: dict(own[part]))
    run = begin(train, quick=True, num_layers=3)
    assert run.recipe == Recipe(epochs=4, refit=False, lr=0.5)
    assert (run.model.d_ff, run.model.num_layers) == (48, 3)


def test_training_on_images_begins_with_the_patch_that_was_asked_for(begin, monkeypatch):
    x, y = np.zeros((4, 4, 8), np.float32), np.array([0, 1, 0, 1])
    images = Dataset("i", "images", ("a", "b"), x, y, x, y, None, "made")
    monkeypatch.setattr(train, "dataset_of", lambda *_: images)
    run = begin(train, patch=4)
    assert (run.patch, run.model.input, run.model.input_size) == (4, "patches", 16)


@pytest.mark.parametrize("out", ["here", None])
def test_settings_are_those_that_a_run_is_to_go_on_with(tmp_path, monkeypatch, out):
    made, dataset = [], toy()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(common.ops, "cuda_available", lambda: False)
    monkeypatch.setattr(training.Run, "create", lambda *given: made.append(given))
    given = {"data": str(table(tmp_path / "x.csv")), "text_column": "t", "label_column": "l"}
    given |= {"side": "auto", "quick": True} | ({} if out is None else {"out": tmp_path / out})
    model = ClassifierConfig(input_size=9, num_classes=2, max_length=5)
    training.begun(given, dataset, None, model=model, recipe=Recipe())
    ((folder, found, _),) = made
    assert folder.name == out if out else folder.name.startswith("x-")
    assert found == settings.Settings(
        data=given["data"], text_column="t", label_column="l", labels=dataset.labels, quick=True,
        data_sha256=settings.fingerprint(dataset), side="reference", model=model, recipe=Recipe(),
    )  # fmt: skip
