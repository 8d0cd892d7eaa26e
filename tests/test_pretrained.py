"""A pretrained model as a program uses it: from threads and forks, saved beside other files."""

import dataclasses
import json
import os
import threading
import time

import numpy as np
import pytest
from bert_models import folder_of, theirs
from made import kept_by
from test_cli import call, table

from twofold.core import ops, pretrained
from twofold.core.data.wordpiece import WordPieceTokenizer
from twofold.core.training import inference, threads
from twofold.core.training.processes import Processes
from twofold.core.training.run import Run
from twofold.reference import softmax


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return folder_of(theirs(num_labels=2), tmp_path_factory.mktemp("small"))


TEXTS = ["a film of rare good", "bad", "awful awful film , of a bad bad film"]


def saved(bert, folder, **how):
    pretrained.save(folder, bert.model, bert.tokenizer, bert.labels, **how)


def test_nothing_else_in_a_folder_is_touched(small, tmp_path, monkeypatch):
    bert = pretrained.load(small)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("of years")
    with pytest.raises(ValueError, match=r"which holds thesis.txt; it must be empty, or hold a"):
        saved(bert, mine)
    assert (mine / "thesis.txt").read_text() == "of years"
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match="folder is '.*', a file; it must be a folder's name"):
        saved(bert, file)
    assert file.read_text() == "mine" and sorted(os.listdir(tmp_path)) == ["file", "mine"]
    (mine / "thesis.txt").unlink()
    (tmp_path / "link").symlink_to(mine)
    for _ in range(2):  # the second replaces the first
        saved(bert, tmp_path / "link")
        assert pretrained.load(mine).labels == bert.labels
    assert (tmp_path / "link").is_symlink()
    monkeypatch.chdir(mine)
    with pytest.raises(ValueError, match="where we are; it must be another"):
        saved(bert, ".")


def test_texts_are_cut_where_the_model_ends(small, tmp_path):
    transformers = pytest.importorskip("transformers")
    bert = pretrained.load(small)
    for folder, longest in ((tmp_path / "all", None), (tmp_path / "few", 7)):
        saved(bert, folder, longest=longest)
        theirs_ = transformers.AutoTokenizer.from_pretrained(folder)
        ids = theirs_("film " * 100, truncation=True)["input_ids"]
        assert len(ids) == (longest or bert.model.config.max_length)


def test_what_is_no_list_is_refused(small):
    bert = pretrained.load(small)
    for function in (bert.predict, bert.embed):
        with pytest.raises(ValueError, match="^texts is the text 'a film'; it must be a list"):
            function("a film")
    with pytest.raises(ValueError, match="^labels is the text 'ab'; it must be a list"):
        pretrained.load(small, labels="ab")
    with pytest.raises(ValueError, match="^labels is .'a', 'a'.; it must be 2 names, no two alike"):
        pretrained.save("nowhere", bert.model, bert.tokenizer, ("a", "a"))


def test_arguments_are_refused_where_they_are_given(small, tmp_path):
    """And not after the work, or when the folder is read."""
    with pytest.raises(ValueError, match="^labels is .'a', 'a'.; it must be 2 names, no two alike"):
        pretrained.load(small, labels=("a", "a"))
    with pytest.raises(TypeError, match=r"^labels\[1\] is a int; it must be a str"):
        pretrained.load(small, labels=("a", 5))
    with pytest.raises(TypeError, match="^ops is a str; it must be a Side, as ops.load returns"):
        pretrained.load(small, ops="reference")
    bert = pretrained.load(small)
    for function in (bert.predict, bert.embed):
        with pytest.raises(TypeError, match=r"^texts\[0\] is a int; it must be a str"):
            function([5])
        with pytest.raises(TypeError, match="^texts is a int; it must be a list of texts"):
            function(5)
    for longest, error, words in (
        (-1, ValueError, "-1; it must be at least 1"),
        (0, ValueError, "0; it must be at least 1"),
        (17, ValueError, "17; it must be at most the model's 16 positions"),
        (2.5, TypeError, "a float; it must be an int"),
    ):
        with pytest.raises(error, match=f"^longest is {words}"):
            saved(bert, tmp_path / "out", longest=longest)
    assert not (tmp_path / "out").exists()


def test_a_text_and_a_pair_do_not_share_a_batch(small):
    bert = pretrained.load(small)
    both = [bert.encode("a film"), bert.encode("a", "film")]
    words = r"^inputs\[1\]\.shape is \(5, 2\); it must be that of inputs\[0\] but for length"
    with pytest.raises(ValueError, match=words):
        bert.trainer().step(both, [0, 1], step=1, lr=0.1)
    with pytest.raises(ValueError, match=words):
        inference.predict(bert.model, both)
    with pytest.raises(TypeError, match=r"^inputs\[1\] has dtype float64"):
        bert.trainer().step([both[0], both[0] * 1.0], [0, 1], step=1, lr=0.1)


def test_a_model_that_has_no_numbers_does_not_answer(small):
    bert = pretrained.load(small)
    bert.model.flat[:] = np.nan
    with pytest.raises(ValueError, match="a logit is not finite"):
        bert.predict(TEXTS)
    with pytest.raises(ValueError, match="a vector is not finite"):
        bert.embed(TEXTS)


def test_who_asks_for_answers_keeps_nothing_for_a_way_back(small, monkeypatch):
    """For a product with an activation, that would be the activation's input."""
    bert, text = pretrained.load(small), ["a film"]
    for ask in (bert.predict, bert.embed):
        kept = kept_by(monkeypatch, "linear")
        ask(text)
        assert kept.count(False) == bert.model.config.num_layers
    bert.model.forward(np.ones((1, 3), np.int64), np.array([3]))
    assert kept.count(False) == bert.model.config.num_layers


def test_answers_are_worked_out_in_float64_and_rounded_once(small, monkeypatch):
    bert, text, rng = pretrained.load(small), ["a film"], np.random.default_rng(0)
    made = {}
    monkeypatch.setattr(inference.graphs, "begun", lambda _, function, __: lambda: made[function])
    for _ in range(20):
        logits, mean = (rng.standard_normal((1, n), np.float32) for n in (2, 24))
        made |= {inference.graphs.logits: logits, inference.graphs.means: mean}
        exact = softmax.forward(logits.astype(np.float64))[0]
        assert np.array_equal(bert.predict(text), exact.astype(np.float32))
        exact = mean / np.linalg.norm(mean.astype(np.float64))
        assert np.array_equal(bert.embed(text), exact.astype(np.float32))
    mean[:] = 0  # without a direction
    assert not bert.embed(text).any()
    mean[0, :2] = 3e-6, 4e-6  # however short
    assert np.abs(bert.embed(text)[0, :2] - [0.6, 0.8]).max() < 1e-6


def test_who_judges_beside_another_that_found_no_number_does_not_wait_for_it(small):
    class Beside(Processes):
        size = 2

        def count(self, n):
            return n + 1

    bert = pretrained.load(small, labels=("a", "b"))
    inputs = [bert.encode("a film"), bert.encode("bad")]
    with pytest.raises(inference.NotFinite, match="in another process; it must be a number"):
        inference.accuracy(bert.model, inputs, np.array([0, 1]), Beside())


def test_a_model_in_bfloat16_answers_in_numbers_of_numpy(triton, small):
    bert = pretrained.load(small, ops=triton, dtype="bfloat16")
    exact = pretrained.load(small)
    found = bert.predict(TEXTS)
    assert found.dtype == np.float32 and np.allclose(found.sum(1), 1)
    assert np.abs(found - exact.predict(TEXTS)).max() < 0.2  # of numbers of 8 bits
    assert bert.embed(TEXTS).shape == exact.embed(TEXTS).shape


def test_threads_wait_their_turn(small):
    """As if a GPU replayed graphs: all threads' batches lie in the same buffers."""

    def slowly(function):
        def run():
            time.sleep(0.002)  # in which another thread would write its own batch
            function()

        return run

    side = dataclasses.replace(ops.load("reference"), device="cuda", captured=slowly)
    bert, own = pretrained.load(small, ops=side), pretrained.load(small)
    expected = {text: own.predict([text]) for text in TEXTS}
    wrong = []

    def ask(text):
        for _ in range(20):
            if np.abs(bert.predict([text]) - expected[text]).max() > 1e-5:
                wrong.append(text)

    asking = [threading.Thread(target=ask, args=(text,)) for text in TEXTS]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("items", [1, 2])
def test_what_is_not_finite_is_seen_in_the_result_and_not_warned_of(items):
    """However many batches there are: a single text is a batch of its own."""
    found = threads.parallel(lambda x: np.float32(3e38) * x, [np.float32(10)] * items)
    assert found == [np.inf] * items


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_a_fork_has_threads_of_its_own(request):
    def at_once():
        met = threading.Barrier(3)  # where three wait for each other
        return sorted(threads.parallel(lambda _: met.wait(30), range(3))) == [0, 1, 2]

    request.addfinalizer(lambda: threads.use_threads(2))
    threads.use_threads(3)
    assert at_once()
    child = os.fork()
    if child == 0:
        os._exit(0 if at_once() else 1)
    for _ in range(600):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the fork waits for threads that it has not")
    assert status == 0


def test_a_token_may_hold_what_ends_lines_elsewhere(tmp_path):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a\u2028b", "film"]
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    made = WordPieceTokenizer.read(tmp_path)
    assert made.vocabulary_size == len(tokens)
    assert made.encode("film", 8).tolist() == [2, 6, 3]


def test_a_model_is_fine_tuned_changed_as_it_is_asked_for(small, tmp_path):
    how = ["--dropout", 0.25, "--attention-dropout", 0.125, "--pooling", "mean", "--epochs", 1]
    file, out = table(tmp_path / "reviews.csv"), tmp_path / "run"
    call("finetune", "--data", file, "--init", small, "--out", out, "--side", "reference", *how)
    model = Run.open(out).settings.model
    found = model.dropout, model.embedding_dropout, model.attention_dropout
    assert found == (0.25, 0.25, 0.125) and (model.pooling, model.pooler) == ("mean", False)
