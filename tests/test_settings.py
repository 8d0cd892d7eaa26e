"""A run's settings: which data it has, and what it reads of them."""

import dataclasses

import numpy as np
import pytest
from test_cli import TINY, call, table
from test_training import begin, toy

from twofold.core.data.datasets import Dataset
from twofold.core.training.run import Run
from twofold.core.training.settings import (
    PREFERENCES,
    QUICK_EXAMPLES,
    Settings,
    dataset_of,
    fingerprint,
    preferred,
    shortened,
)


def test_a_fingerprint_tells_examples_and_labels_of_both_parts_apart():
    """It also depends on where one text ends and the next begins."""
    y = np.array([0, 1])
    texts = Dataset("t", "text", ("a", "b"), ["ab", "c"], y, ["d", "ef"], y, None, "made")
    x = np.arange(8.0).reshape(2, 2, 2)
    images = dataclasses.replace(texts, kind="images", train_x=x, test_x=x + 8)
    changes = [{}, {"train_y": 1 - y}, {"test_y": 1 - y}]
    of_texts = [{"train_x": ["a", "bc"]}, {"test_x": ["de", "f"]}, {"train_x": ["ab", "x"]}]
    of_images = [{"train_x": x[::-1]}, {"test_x": x}]
    found = [fingerprint(dataclasses.replace(texts, **c)) for c in (*changes, *of_texts)]
    found += [fingerprint(dataclasses.replace(images, **c)) for c in (*changes, *of_images)]
    assert len(set(found)) == len(found)
    assert fingerprint(dataclasses.replace(texts, train_y=y.astype(np.int32))) == found[0]


@pytest.mark.parametrize("graded", [False, True])
def test_the_short_form_is_drawn_evenly_and_keeps_what_belongs_together(graded):
    n = 10
    soft = np.stack([np.arange(n), -np.arange(n)], axis=1).astype(np.float32) if graded else None
    dataset = dataclasses.replace(
        toy(), train_x=[str(i) for i in range(n)], train_y=np.arange(n), train_targets=soft
    )
    short = shortened(dataset, 4)
    assert short.train_x == ["0", "3", "6", "9"] and short.train_y.tolist() == [0, 3, 6, 9]
    if soft is None:
        assert short.train_targets is None
    else:
        assert np.array_equal(short.train_targets, soft[::3])
    assert (short.test_x, short.labels) == (dataset.test_x, dataset.labels)
    assert shortened(dataset, n) is shortened(dataset, n + 1) is dataset


def test_a_run_reads_its_data_as_it_was_begun_with_them(tmp_path, monkeypatch):
    """With its columns, shortened if it was, from their old place or from here."""
    file = table(tmp_path / "data.csv")
    file.write_text(file.read_text().replace("text,label", "words,kind"))
    columns = {"text_column": "words", "label_column": "kind"}
    expected = fingerprint(dataset_of(str(file), *columns.values(), False))
    run = begin(tmp_path / "run", toy())
    settings = dataclasses.replace(run.settings, data=str(file), **columns)
    assert fingerprint(settings.dataset()) == expected
    (tmp_path / "here").mkdir()
    other = table(tmp_path / "here" / "data.csv", seed=1)
    other.write_text(other.read_text().replace("text,label", "words,kind"))
    monkeypatch.chdir(other.parent)
    assert fingerprint(settings.dataset()) == expected
    file.replace(other)
    assert fingerprint(settings.dataset()) == expected
    many = "".join(f"film {i},{'ab'[i % 2]}\n" for i in range(2 * QUICK_EXAMPLES))
    other.write_text("words,kind\n" + many)
    quick = dataclasses.replace(settings, quick=True).dataset()
    assert len(quick.train_x) == len(quick.train_y) == QUICK_EXAMPLES
    assert len(settings.dataset().train_x) > QUICK_EXAMPLES


def test_a_run_keeps_which_data_it_was_given_and_how(tmp_path, monkeypatch):
    """So that they can be read again from anywhere."""
    file = table(tmp_path / "data.csv")
    file.write_text(file.read_text().replace("text,label", "words,kind"))
    monkeypatch.chdir(tmp_path)
    how = ["--data", "data.csv", "--text-column", "words", "--label-column", "kind", "--quick"]
    call("train", *how, "--out", "run", *TINY, "--epochs", 1)
    settings = Run.open(tmp_path / "run").settings
    assert (settings.data, settings.quick) == (str(file), True)
    assert (settings.text_column, settings.label_column) == ("words", "kind")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    call("evaluate", tmp_path / "run")


def test_what_a_data_set_prefers_is_a_copy():
    for data in PREFERENCES:
        for part in ("model", "recipe"):
            found = preferred(data, part)
            assert found == PREFERENCES[data][part]
            found["epochs"] = -1
            assert "epochs" not in PREFERENCES[data][part] or preferred(data, part) != found
    assert preferred("movie", "recipe") == {}


def test_settings_that_lack_something_or_hold_something_else_are_refused_by_its_name(tmp_path):
    fields = begin(tmp_path / "run", toy()).settings.to_json()
    of_old = {n: x for n, x in fields.items() if n not in ("init", "tokenizer_sha256")}
    assert Settings.from_json(of_old).to_json().keys() == fields.keys()
    for name in ("data", "data_sha256", "labels", "model", "recipe"):
        lacking = {n: x for n, x in fields.items() if n != name}
        with pytest.raises(ValueError, match=f"^{name} is missing in the run's settings$"):
            Settings.from_json(lacking)
    for name in ("model", "recipe"):
        with pytest.raises(TypeError, match=f"^{name} is a list, not an object$"):
            Settings.from_json(fields | {name: []})
    with pytest.raises(ValueError, match="^more is unknown in the run's settings$"):
        Settings.from_json(fields | {"more": 1})
    with pytest.raises(TypeError, match="^the run's settings are a list, not an object$"):
        Settings.from_json([])
