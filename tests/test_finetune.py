"""Fine-tuning: transformers' own losses, runs that resume, folders that transformers reads."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import bert_models
import numpy as np
import pytest
import torch
import transformers
from outside import twofold
from test_cli import call, table
from typer.testing import CliRunner

from twofold.core import ops, pretrained
from twofold.core.cli import app
from twofold.core.model.parameters import Layout
from twofold.core.training import loop
from twofold.core.training.batches import collate
from twofold.core.training.optimizer import Optimizer, stretches
from twofold.core.training.recipe import OPTIMIZERS, Recipe
from twofold.core.training.run import Run

HOW = ["--side", "reference", "--epochs", "3", "--lr", "1e-3", "--batch-size", "16"]
TEXTS = ("film plot cast score lovely 3", "film plot cast score awful 3")
NEAR = 1000 * 2.0**-53  # of the largest: float64's unit, times the roundings along a path of sums
NO_DROPOUT = {"dropout": 0.0, "embedding_dropout": 0.0, "attention_dropout": 0.0}
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "lovely", "awful"]
VOCABULARY += ["film", "plot", "cast", "score", *map(str, range(100))]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return a BERT's folder, without a head."""
    sizes = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 12}
    model = bert_models.theirs(1, transformers.BertModel, **sizes)
    return bert_models.folder_of(model, tmp_path_factory.mktemp("small"), VOCABULARY)


@pytest.fixture(scope="module")
def run(small, tmp_path_factory):
    """Return a finished run on a file, and its result."""
    folder = tmp_path_factory.mktemp("finetuned")
    file = table(folder / "reviews.csv")
    how = ["--data", file, "--init", small, "--frozen", 0, *HOW]
    how += ["--epochs", 20, "--lr", 5e-3]
    call("finetune", *how, "--out", folder / "run", "--json", folder / "r.json")
    return folder / "run", json.loads((folder / "r.json").read_text())


def test_the_short_program_of_tutorials(small):
    """Ten epochs of Adam on a sample text, without dropout, give transformers' losses."""
    bert = pretrained.load(small, labels=("bad", "good"), **NO_DROPOUT)
    trainer = bert.trainer(optimizer="adam")
    losses = []
    for epoch in range(10):
        trainer.step([bert.encode("A lovely film.")], [1], step=epoch + 1, lr=1e-5)
        losses.append(trainer.loss)

    start = pretrained.load(small, labels=("bad", "good"), **NO_DROPOUT)
    theirs = {}
    for dtype in (torch.float32, torch.float64):
        model = written(start).to(dtype)
        model.train()
        adam = torch.optim.Adam(model.parameters(), lr=1e-5)
        inputs = torch.tensor(start.encode("A lovely film."))[None]
        theirs[dtype] = []
        for _ in range(10):
            outputs = model(inputs, labels=torch.tensor([1]))
            outputs.loss.backward()
            adam.step()
            adam.zero_grad()
            theirs[dtype].append(float(outputs.loss.detach()))
    exact = np.array(theirs[torch.float64])
    assert (np.diff(losses) < 0).all() and (np.diff(exact) < 0).all()
    # By how much a step lowers the loss, the rounding of ten steps is a small part.
    assert np.abs(np.array(losses) - exact).max() < 0.01 * np.abs(np.diff(exact)).min()


def test_the_program_of_the_readme_runs(small, tmp_path, monkeypatch):
    """As written there, on a smaller BERT."""
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (program,) = (
        block.split("```")[0]
        for block in readme.split("```python\n")[1:]
        if "pretrained.load" in block.split("```")[0]
    )
    losses = []
    program = program.replace('"minilm"', repr(str(small)))
    exec(program, {"print": lambda epoch, loss: losses.append((epoch, loss))})
    assert [epoch for epoch, _ in losses] == list(range(10))
    first, last = (
        pretrained.load(small, labels=("negative", "positive")),
        pretrained.load("my-bert"),
    )
    before, after = (bert.predict(["This is a sample text."])[0] for bert in (first, last))
    assert after[1] > before[1] and last.labels == ("negative", "positive")


def written(bert):
    """Return our model as transformers loads it from what we write."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        pretrained.save(folder, bert.model, bert.tokenizer, bert.labels)
        kind = transformers.BertForSequenceClassification
        return kind.from_pretrained(folder, attn_implementation="eager")


def test_a_run_ends_as_a_folder_for_transformers(run, small, tmp_path):
    folder, result = run
    assert result["test_accuracy"] > 0.9 and result["init"] == str(small)
    kind = transformers.BertForSequenceClassification
    theirs = kind.from_pretrained(folder / "huggingface", attn_implementation="eager").eval()
    theirs = theirs.double()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "huggingface")
    opened = Run.open(folder)
    trained = opened.load_model(ops.load("reference"))
    ours = pretrained.load(folder / "huggingface", dtype="float64").model
    assert np.array_equal(trained.flat, ours.flat)  # float32 in float64
    for text in TEXTS:
        (ids,) = opened.codec.encode([text])
        given = tokenizer(text, return_tensors="pt")
        assert given["input_ids"][0].tolist() == ids.tolist()
        with torch.no_grad():
            expected = theirs(**given).logits.numpy()
        found, _ = ours.forward(ids[None], np.array([len(ids)]))
        assert np.abs(found - expected).max() <= NEAR * np.abs(expected).max()
    assert theirs.config.id2label == {0: "no", 1: "yes"} and opened.settings.longest == 12
    for n, where in enumerate((folder, folder / "huggingface")):
        call("predict", where, *TEXTS, "--json", tmp_path / f"{n}.json", "--side", "reference")
    first, second = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (0, 1))
    assert first == second
    assert [p["label"] for p in first["predictions"]] == ["yes", "no"]


def test_what_is_written_for_transformers_cuts_texts_where_the_run_did(small, tmp_path):
    file, long = table(tmp_path / "reviews.csv"), "film plot cast score film plot lovely"
    how = [*HOW, "--epochs", 1, "--longest", 6, "--out", tmp_path / "run"]
    call("finetune", "--data", file, "--init", small, *how)
    opened = Run.open(tmp_path / "run")
    (ids,) = opened.codec.encode([long])
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "run" / "huggingface")
    assert theirs(long, truncation=True)["input_ids"] == ids.tolist() and len(ids) == 6
    assert pretrained.load(tmp_path / "run" / "huggingface").longest == 6


def test_evaluate_finds_what_fine_tuning_found(run, tmp_path):
    folder, result = run
    call("evaluate", folder, "--json", tmp_path / "e.json", "--side", "reference")
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["test_accuracy"] == result["test_accuracy"]


@pytest.mark.parametrize("frozen", [0, 2])
def test_an_interrupted_run_ends_with_the_same_bits(small, tmp_path, frozen):
    file = table(tmp_path / "reviews.csv")
    how = ["finetune", "--data", file, "--init", small, "--longest", 12, *HOW]
    how += ["--frozen", frozen, "--layer-decay", 0.9, "--average", 0.9]
    call(*how, "--out", tmp_path / "whole")
    made = []
    step = loop._Loop._step

    def interrupted(self, phase, chosen, steps):
        step(self, phase, chosen, steps)
        made.append(steps)
        if len(made) == 7:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Loop, "_step", interrupted)
        call(*how, "--out", tmp_path / "broken", status=130)
    call("finetune", "--resume", tmp_path / "broken")
    first, second = (
        (tmp_path / name / "model" / "tensors.safetensors").read_bytes()
        for name in ("whole", "broken")
    )
    assert first == second
    tensors = Run.open(tmp_path / "whole").load_model(ops.load("reference")).params
    begun = pretrained.load(small).model
    for name, x in begun.params.items():
        if begun.part(name) < 3:
            assert np.array_equal(x, tensors[name]) == (begun.part(name) < frozen), name


def test_a_run_goes_on_from_its_weights_wherever_they_are_and_no_others(
    small, tmp_path, monkeypatch
):
    other = bert_models.theirs(9, transformers.BertModel, vocab_size=len(VOCABULARY))
    init = bert_models.folder_of(other, tmp_path / "init", VOCABULARY)
    file = table(tmp_path / "reviews.csv")
    how = ["--data", file, "--init", init, "--longest", 12, *HOW]
    call("finetune", *how, "--out", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    init.rename(tmp_path / "gone")
    assert "there is no such folder" in call("finetune", "--resume", tmp_path / "run", status=2)
    (tmp_path / "elsewhere").mkdir()
    init = (tmp_path / "gone").rename(tmp_path / "elsewhere" / "init")
    monkeypatch.chdir(init.parent)  # as with data: what is here by its name
    call("finetune", "--resume", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    (init / "model.safetensors").write_bytes((small / "model.safetensors").read_bytes())
    said = call("finetune", "--resume", tmp_path / "run", status=2)
    assert "are not the weights that" in said


@pytest.mark.parametrize("labels", [("yes", "no"), ("no", "yes"), ("no", "maybe")])
def test_a_head_is_gone_on_from_whatever_the_order_of_its_classes(small, tmp_path, labels):
    bert = pretrained.load(small, labels=labels, seed=3)
    pretrained.save(tmp_path / "taught", bert.model, bert.tokenizer, labels)
    head = dict(zip(labels, bert.model.params["head.weight"], strict=True))
    file, how = table(tmp_path / "reviews.csv"), [*HOW, "--epochs", 1, "--lr", 0]
    said = call(
        "finetune", "--data", file, "--init", tmp_path / "taught", "--out", tmp_path / "run", *how
    )
    drawn = "the head is drawn: the model's classes are no, maybe; those of the data are no, yes"
    assert (drawn in said) == ("maybe" in labels)
    run = Run.open(tmp_path / "run")
    found = run.load_model(ops.load("reference")).params["head.weight"]
    for label, row in zip(run.settings.labels, found, strict=True):
        kept = label in head and np.array_equal(row, head[label])
        assert kept == ("maybe" not in labels)
    loaded = pretrained.load(tmp_path / "taught", labels=labels[::-1])
    assert np.array_equal(loaded.model.params["head.weight"], [head[n] for n in labels[::-1]])


def test_a_pretrained_model_is_not_written_over(small, tmp_path):
    init = tmp_path / "init"
    bert = pretrained.load(small)
    pretrained.save(init, bert.model, bert.tokenizer, bert.labels)
    before = {path.name: path.read_bytes() for path in init.iterdir()}
    file = table(tmp_path / "reviews.csv")
    said = call("finetune", "--data", file, "--init", init, "--out", init, *HOW, status=2)
    assert f"--out is '{init}', which holds config.json, model.safetensors" in said
    assert {path.name: path.read_bytes() for path in init.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--init", "nowhere"], "nowhere: there is no such folder"),
        (["--frozen", "-1"], "--frozen is -1; it must be at least 0"),
        (["--init", "SMALL", "--frozen", "4"], "--frozen is 4; it must be at most 3"),
        (["--layer-decay", "0"], "--layer-decay is 0.0; it must be in (0, 1]"),
        (["--epochs", "0"], "--epochs is 0; it must be at least 1"),
        (["--init", "SMALL", "--longest", "13"], "--longest is 13; it must be from 3 to 12"),
        (["--init", "SMALL", "--longest", "2"], "--longest is 2; it must be from 3 to 12"),
        (["--init", "nowhere", "--dropout", "1"], "--dropout is 1.0; it must be at least 0 and"),
        (["--init", "SMALL", "--longest", "9", "--data", "no.csv"], "no.csv: there is no such"),
        (["--init", "SMALL", "--pooling", "x"], "--pooling is 'x'; it must be one of 'mean'"),
    ],
)
def test_bad_input_is_refused_before_a_folder_is_made(
    small, arguments, words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    arguments = [str(small) if a == "SMALL" else a for a in arguments]
    assert words in call("finetune", *arguments, status=2)
    assert not list(tmp_path.iterdir())


def test_more_frozen_than_there_is_is_refused(small):
    with pytest.raises(ValueError, match="frozen is 4; it must be at most 3: the head"):
        pretrained.load(small).trainer(frozen=4)


def test_stretches_are_as_few_as_can_be():
    layout = Layout({"a": (2, 3), "b": (40, 1), "c": (5, 5), "x": (3,), "y": (4,), "z": (2,)})
    (whole,) = stretches(layout, layout, dict.fromkeys(layout.shapes, 1.0))
    assert whole == (slice(0, 224), slice(0, 224), 128, 1.0)
    lowest = {name: 0.5 if name == "a" else 1.0 for name in layout.shapes}
    assert [at.params for at in stretches(layout, layout, lowest)] == [slice(0, 32), slice(32, 224)]
    learned = Layout({n: s for n, s in layout.shapes.items() if n not in "ax"})
    factors = {"b": 0.5, "c": 1.0, "y": 1.0, "z": 0.5}
    found = stretches(layout, learned, factors)
    assert found == [
        (slice(32, 96), slice(0, 64), 64, 0.5),
        (slice(96, 128), slice(64, 96), 32, 1.0),
        (slice(160, 192), slice(96, 128), 0, 1.0),
        (slice(192, 224), slice(128, 160), 0, 0.5),
    ]


@pytest.mark.parametrize("max_norm", [0.0, 0.3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_recipes_optimizer_is_the_operator_of_its_name(reference, name, max_norm):
    """With the recipe's numbers; two stretches are stepped by two calls of that operator."""
    layout = Layout({"w": (8, 4), "c": (4, 8), "b": (32,)})
    over = stretches(layout, layout, {"w": 0.5, "c": 1.0, "b": 1.0})
    numbers = {"weight_decay": 0.2, "momentum": 0.7, "max_norm": max_norm}
    made = Optimizer(Recipe(optimizer=name, **numbers), reference, 96, over, "float64")
    rng = np.random.default_rng(0)
    params, found = (x := rng.standard_normal(96)), x.copy()
    kind = "adam" if name == "adamw" else name
    state = [np.zeros(96) for _ in made.state]
    for step in (1, 2, 3):
        grads, norm = rng.standard_normal(96), np.array(9.0)
        how = {"weight_decay": 0.2} | ({"momentum": 0.7} if name == "sgd" else {})
        how |= {"step": step, "decoupled": name == "adamw"} if kind == "adam" else {}
        how |= {"grad_norm": norm, "max_norm": 0.3} if max_norm else {}
        for at, lr, decaying in ((slice(32), 0.05, 32), (slice(32, 96), 0.1, 32)):
            buffers = (x[at] for x in (params, grads, *state))
            getattr(reference.optimizers, kind)(*buffers, lr=lr, decay_numel=decaying, **how)
        made.step(found, grads, step=step, lr=0.1, grad_norm=norm)
        assert np.array_equal(found, params)
        assert all(map(np.array_equal, made.state.values(), state))


def test_a_part_learns_at_its_own_rate(small):
    """With SGD a part's change is its rate times its gradient."""
    changes = {}
    for decay in (1.0, 0.5):
        bert = pretrained.load(small, **NO_DROPOUT)
        before = bert.model.flat.copy()
        trainer = bert.trainer(optimizer="sgd", momentum=0.0, layer_decay=decay)
        trainer.step([bert.encode("A lovely film.")], [1], step=1, lr=0.25)
        changes[decay] = bert.model.layout.views(bert.model.flat - before)
    for name, change in changes[1.0].items():
        factor = 0.5 ** (3 - bert.model.part(name))
        gap = np.abs(changes[0.5][name] - factor * change).max()
        assert gap <= 4 * 2.0**-24 * np.abs(before).max(), name


def test_embeddings_of_like_texts_are_near_and_do_not_depend_on_company(tmp_path):
    texts = ["A man is eating food.", "A man eats something.", "The stock market fell today."]
    said = call("embed", *texts, "--out", tmp_path / "v.npy", "--side", "reference")
    vectors = np.load(tmp_path / "v.npy")
    assert vectors.shape == (3, 384) and vectors.dtype == np.float32
    cosines = vectors @ vectors.T
    assert np.abs(np.diag(cosines) - 1).max() < 1e-6
    assert cosines[0, 1] > 0.8 > 0.2 > max(cosines[0, 2], cosines[1, 2])
    assert f"{cosines[0, 1]:.2f}" in said
    alone = pretrained.load("minilm").embed(texts[1:2])
    assert alone[0] @ vectors[1] > 1 - 1e-6
    assert "must end with .npy" in call("embed", "a", "--out", tmp_path / "v.txt", status=2)


def test_lines_are_answered_as_they_come(run):
    """The first answer comes before the second line is written."""
    script = "import sys; from twofold.core.cli import main; sys.argv[0] = 'twofold'; main()"
    command = [sys.executable, "-u", "-c", script, "predict", str(run[0]), "--side", "reference"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=os.environ)
    for text in (b"film lovely plot\n", b"awful cast\n"):
        process.stdin.write(text)
        process.stdin.flush()
        assert process.stdout.readline().endswith(text)
    process.stdin.write("half a lïne".encode())
    out, err = process.communicate()
    assert out.decode().endswith("half a lïne\n") and b"3 lines in" in err
    assert CliRunner().invoke(app, ["predict", str(run[0])], input="\n \n").exit_code == 2


def test_fine_tuning_needs_neither_torch_nor_transformers(small, tmp_path):
    """In a process where they cannot be imported."""
    file = table(tmp_path / "reviews.csv")
    how = ["--data", file, "--init", small, "--longest", 12, "--epochs", 1]
    without = ("torch", "triton", "transformers", "hypothesis", "ml_dtypes")
    for command in (
        ["finetune", *how, "--out", tmp_path / "run"],
        ["predict", tmp_path / "run", "film"],
        ["predict", tmp_path / "run" / "huggingface", "film"],
        ["embed", "film", "--model", small],
    ):
        done = twofold(*command, without=without)
        assert done.returncode == 0, done.stderr


def test_a_folder_that_was_not_taught_to_classify_does_not_predict(small):
    said = call("predict", small, "film", "--side", "reference", status=2)
    assert "classifier.weight, classifier.bias are missing: it was not taught to classify" in said


def test_pairs_are_learned_from(small):
    """With their token types, both of which occur in a pair."""
    bert = pretrained.load(small, **NO_DROPOUT)
    pairs = [bert.encode("lovely film", "awful plot"), bert.encode("awful cast", "lovely score")]
    assert [pair[:, 1].max() for pair in pairs] == [1, 1]
    before = bert.model.params["types.table"].copy()
    trainer = bert.trainer(optimizer="adam")
    for step in range(1, 31):
        trainer.step(pairs, [0, 1], step=step, lr=1e-3)
    logits, _ = bert.model.forward(*collate(pairs))
    assert logits.argmax(axis=1).tolist() == [0, 1]
    assert (bert.model.params["types.table"] != before).all()
