"""Labelled files: what is read, and every fault named with file and line."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from twofold.core.data.datasets import load_dataset
from twofold.core.data.errors import DataError
from twofold.core.data.files import read_labelled
from twofold.core.data.tokenizers import WordTokenizer

GOOD = {
    "a.csv": 'Text,label\n"one, ""two""\nthree",x\n\nfour,y\n,x\n',
    "a.tsv": 'TEXT\tother\tLabel\n"one", "two" three\t1\tx\nfour\t2\t y \n"\t"\tx\n\t\ty\n',
    "a.jsonl": '{"text": "one", "label": 1}\n\n{"label": true, "text": "\\u00fc", "more": []}\r\n',
}
READ = {
    "a.csv": (['one, "two"\nthree', "four", ""], ["x", "y", "x"]),
    "a.tsv": (['"one", "two" three', "four", '"', ""], ["x", "y", "x", "y"]),
    "a.jsonl": (["one", "ü"], ["1", "true"]),
}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order mark"])
@pytest.mark.parametrize("name", GOOD)
def test_reads_what_is_there(tmp_path: Path, name: str, mark: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(mark + GOOD[name].encode())
    limit = csv.field_size_limit()
    assert read_labelled(path) == READ[name]
    assert csv.field_size_limit() == limit  # a setting of the whole process


def test_equal_numbers_are_one_label(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    numbers = ("1", "1.0", "1e0", "-0.0", "0", "0.50", "true")
    path.write_text("".join(f'{{"text": "a", "label": {n}}}\n' for n in numbers))
    assert read_labelled(path)[1] == ["1", "1", "1", "0", "0", "0.5", "true"]


FAULTS: dict[str, tuple[str, bytes, int, str]] = {
    "empty": ("a.csv", b"", 1, "the file is empty"),
    "blank": ("a.jsonl", b" \n\xc2\xa0\n", 1, "the file is empty"),
    "header only": ("a.csv", b"\ntext,label\n", 2, "nothing follows the header"),
    "one class": ("a.csv", b"text,label\n\na,x\nb,x\n", 3, "the label is 'x', and so it is on"),
    "no text": ("a.csv", b"body,label\na,x\nb,y\n", 1, "there is no column 'text'; say which"),
    "no label": ("a.tsv", b"text\tclass\na\tx\nb\ty\n", 1, "there is no column 'label'; say"),
    "two alike": ("a.csv", b"text,LABEL,Label\na,x,y\n", 1, "there is no column 'label'; say"),
    "not UTF-8": ("a.csv", b"text,label\r\na,x\r\nb\xff,y\r\n", 3, "byte 2, 0xff, is not UTF-8"),
    "cut off": ("a.jsonl", b'{"text": "\xc3', 1, "byte 11, 0xc3, is not UTF-8"),
    "old Mac": ("a.csv", b"text,label\ra,x\r\xe9,y\r", 3, "byte 1, 0xe9, is not UTF-8"),
    "UTF-16": ("a.csv", "text,label\na,x".encode("utf-16"), 1, "byte 4 is NUL"),
    "NUL": ("a.tsv", b"text\tlabel\na\tx\nb\0\ty\n", 3, "byte 2 is NUL"),
    "NUL first": ("a.tsv", b"\0text\tlabel\n", 1, "byte 1 is NUL"),
    "blank first": ("a.csv", b"\n\xff,label\n", 2, "byte 1, 0xff, is not UTF-8"),
    "names": ("a.csv", b"text,label, text\na,x,b\n", 1, "two columns are named 'text'"),
    "short row": ("a.csv", b"text,label\na,x\nb\n", 3, "the row has 1 fields and the header 2"),
    "long row": ("a.csv", b'text,label\n"a\nb",x\nb, c,y\n', 4, "the row has 3 fields and the"),
    "tab": ("a.tsv", b"text\tlabel\na\tb\tx\n", 2, "the row has 3 fields and the header 2"),
    "open quote": ("a.csv", b'text,label\na,x\n"b,y\nc,z\n', 3, "the row is not CSV"),
    "bad quote": ("a.csv", b'text,label\n"a"b,x\n', 2, "the row is not CSV"),
    "no value": ("a.csv", b"text,label\na,x\nb, \n", 3, "the label ('label') is empty"),
    "null": ("a.jsonl", b'{"text": "a", "label": null}', 1, "the label ('label') is empty"),
    "bad JSON": ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": "b"', 2, "not JSON at character"),
    "no object": ("a.jsonl", b'\n["a", 1]\n', 2, "a JSON list, not an object"),
    "NaN": ("a.jsonl", b'{"text": "a", "label": NaN}', 1, "not JSON (NaN is no JSON)"),
    "deep": ("a.jsonl", b"[" * 200_000, 1, "not JSON"),
    "huge": ("a.jsonl", b'{"text": "a", "label": ' + b"9" * 5000 + b"}", 1, "not JSON"),
    "twice": ("a.jsonl", b'{"text": "a", "text": "b"}', 1, "not JSON (a name stands twice"),
    "alike": (
        "a.jsonl",
        b'{" text": "a", "text ": "b", "label": 1}',
        1,
        "two fields are named 'te",
    ),
    "inf": ("a.jsonl", b'{"text": "a", "label": 1e999}', 1, "'label' is more than a float holds"),
    "missing": ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": "b"}', 2, "there is no 'label'"),
    "text 5": ("a.jsonl", b'{"text": 5, "label": 1}', 1, "'text' is 5; a text must be a string"),
    "label []": ("a.jsonl", b'{"text": "a", "label": []}', 1, "'label' is []; a label must be"),
    "surrogate": ("a.jsonl", b'{"text": "\\ud800", "label": 1}', 1, "'text' has half of a"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_file_and_line(tmp_path: Path, fault: str) -> None:
    name, content, line, words = FAULTS[fault]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as refusal:
        read_labelled(path)
    assert str(refusal.value).startswith(f"{path}, line {line}: {words}"), refusal.value


def test_columns_go_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("body,class,text\na,x,c\nb,y,d\n")
    assert read_labelled(path, "body", "class") == (["a", "b"], ["x", "y"])
    assert read_labelled(path, label_column="class") == (["c", "d"], ["x", "y"])
    with pytest.raises(DataError, match="these is the label .*: 'body', 'class', 'text'"):
        read_labelled(path)
    with pytest.raises(DataError, match="there is no column 'Body'"):
        read_labelled(path, "Body", "class")
    with pytest.raises(DataError, match="line 1: 'body' is both text and label"):
        read_labelled(path, "body", "body")


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ends in '.txt'; it must end in one of .csv, .tsv"):
        read_labelled(tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"a.csv: cannot be read \(No such file"):
        read_labelled(tmp_path / "a.csv")
    with pytest.raises(DataError, match="no such file; it must be one of 'movie', 'trec', 'r8'"):
        load_dataset("moovie")
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(
        DataError, match="b.csv: is a folder; it must be one of 'movie', 'trec', 'r8'"
    ):
        load_dataset(tmp_path / "b.csv")


def test_a_pipe_is_no_file_to_read_twice(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(DataError, match="a.csv: is no regular file; it must be one of 'movie'"):
        load_dataset(tmp_path / "a.csv")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_a_line_of_ten_megabytes_is_read_and_cut_when_encoded(tmp_path: Path, suffix: str) -> None:
    long = "spam and eggs, " * (10_000_000 // 15)
    rows = {
        "csv": f'text,label\n"{long}",x\nb,y\n',
        "tsv": f"text\tlabel\n{long}\tx\nb\ty\n",
        "jsonl": "".join(
            json.dumps({"text": t, "label": v}) + "\n" for t, v in ((long, 1), ("", 2))
        ),
    }
    path = tmp_path / f"a.{suffix}"
    path.write_text(rows[suffix])
    texts, _ = read_labelled(path)
    assert texts[0] == long
    tokenizer = WordTokenizer.train(["spam and eggs, spam and eggs,"])
    np.testing.assert_array_equal(tokenizer.encode(texts[0], 6)[4:], tokenizer.encode(long, 2))


def test_a_file_becomes_a_data_set_without_repeated_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [(f"text {i}", "odd" if i % 2 else "even") for i in range(50)]
    rows += [("text 1", "even"), ("text 2", "even"), ("text 50", "rare")]
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    data = load_dataset(path)
    assert (data.kind, data.labels) == ("text", ("even", "odd", "rare"))
    assert data.provenance == f"{path}, 53 examples, 2 repeated texts dropped"
    assert np.bincount(data.test_y).tolist() == [5, 5]
    assert np.bincount(data.train_y).tolist() == [20, 20, 1]
    found = dict(zip([*data.train_x, *data.test_x], [*data.train_y, *data.test_y], strict=True))
    assert len(found) == len(data.train_x) + len(data.test_x) == 51
    assert {text: data.labels[y] for text, y in found.items()} == dict(reversed(rows))
    last = list(dict.fromkeys(text for text, _ in reversed(rows)))[::-1]
    for part in (data.train_x, data.test_x):
        assert list(part) == [text for text in last if text in set(part)]


def test_a_file_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,x\na,y\n")
    with pytest.raises(DataError, match="without repeated texts all are 'x'; two classes are"):
        load_dataset(path)
    path.write_text("text,label\na,x\nb,y\n")
    with pytest.raises(DataError, match="no class has two examples"):
        load_dataset(path)
