"""Labelled texts from a CSV, TSV or JSONL file; every fault is reported with its line.

The file is UTF-8 (a byte-order mark may lead). CSV follows RFC 4180: commas, double quotes, line
breaks inside quotes; TSV is plain: tabs between fields, a quote is a character like any other;
JSONL has an object per line. Blank lines are counted but ignored. Lines may be of any length and
are kept whole, and texts may be empty; a tokenizer later reads as much of a text as the model does.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from twofold.core.data.errors import DataError, refuse

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
OBJECTS = (".jsonl", ".ndjson")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LINE_BREAK = re.compile(rb"\r\n?|\n")

# The line a row begins on, and its fields by column.
Row = tuple[int, Mapping[str, Any]]


def read_labelled(
    path: str | Path, text_column: str | None = None, label_column: str | None = None
) -> tuple[list[str], list[str]]:
    """Return the texts and the labels of a file's rows, in order.

    Args:
        path: a file that ends in .csv, .tsv, .tab, .jsonl or .ndjson.
        text_column, label_column: names of the columns; by default "text" and "label" in upper or
            lower case. Spaces around names and labels are ignored; in JSON, a number or a boolean
            is a label too.

    Raises:
        DataError: the file cannot be read, is not what its name says, lacks these columns, or has
            fewer than two classes.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in DELIMITERS:
        top, columns, rows = _table(path, _decoded(path), DELIMITERS[suffix])
    elif suffix in OBJECTS:
        top, columns, rows = _objects(path, _decoded(path))
    else:
        known = ", ".join((*DELIMITERS, *OBJECTS))
        refuse(path, None, f"the file ends in {suffix!r}", f"it must end in one of {known}")
    text_column = _column(path, top, columns, "text", text_column)
    label_column = _column(path, top, columns, "label", label_column)
    if text_column == label_column:
        refuse(path, top, f"{text_column!r} is both text and label", "these must be two columns")
    texts, labels, first = [], [], 0
    for line, row in rows:
        first = first or line
        texts.append(_text(path, line, row, text_column))
        labels.append(_label(path, line, row, label_column))
    if not texts:
        refuse(path, top, "nothing follows the header", "there must be a row for every example")
    if len(set(labels)) == 1:
        refuse(
            path,
            first,
            f"the label is {labels[0]!r}, and so it is on every other line",
            "there must be two classes or more",
        )
    return texts, labels


def _decoded(path: Path) -> str:
    """Return the file's text; NUL bytes and invalid UTF-8 are refused."""
    try:
        data = path.read_bytes()
    except OSError as fault:
        raise DataError(f"{path}: cannot be read ({fault.strerror})") from fault
    data = data.removeprefix(BYTE_ORDER_MARK)
    nul = data.find(b"\0")
    if nul >= 0:
        line, byte = _place(data, nul)
        refuse(path, line, f"byte {byte} is NUL", "the file must be plain text in UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as fault:
        line, byte = _place(data, fault.start)
        found = f"byte {byte}, 0x{data[fault.start]:02x}, is not UTF-8 ({fault.reason})"
        refuse(path, line, found, "save the file as UTF-8")
    if not text.strip():
        refuse(path, 1, "the file is empty", "it must hold a text and a label per row")
    return text


def _place(data: bytes, offset: int) -> tuple[int, int]:
    """Return the line and the byte within it, both counted from 1."""
    ends = [match.end() for match in LINE_BREAK.finditer(data, 0, offset)]
    return len(ends) + 1, offset - (ends[-1] if ends else 0) + 1


def _table(path: Path, text: str, delimiter: str) -> tuple[int, list[str], Iterator[Row]]:
    """Return the header's line, the columns and the rows of a CSV or TSV file."""
    records = _records(path, text, delimiter)
    top, header = next(records)
    columns = [name.strip() for name in header]
    for i, name in enumerate(columns):
        if name in columns[:i]:
            refuse(path, top, f"two columns are named {name!r}", "every name must differ")

    def rows() -> Iterator[Row]:
        for line, record in records:
            if len(record) != len(columns):
                hint = "put a text with commas in double quotes" if delimiter == "," else "no tabs"
                found = f"the row has {len(record)} fields and the header {len(columns)}"
                refuse(path, line, found, f"they must be as many ({hint})")
            yield line, dict(zip(columns, record, strict=True))

    return top, columns, rows()


def _records(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the records that are not blank, and the line each begins on."""
    stream = io.StringIO(text, newline="")
    if delimiter == ",":
        reader = csv.reader(stream, strict=True)
    else:
        reader = csv.reader(stream, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    while True:
        line = reader.line_num + 1
        # The limit is global to the process, so it is lifted for one record at a time.
        limit = csv.field_size_limit(min(max(len(text), 1), 2**31 - 1))
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as fault:
            refuse(path, line, f"the row is not {path.suffix[1:].upper()} ({fault})", "mend it")
        finally:
            csv.field_size_limit(limit)
        if record and not (len(record) == 1 and not record[0].strip()):
            yield line, record


def _objects(path: Path, text: str) -> tuple[int, list[str], Iterator[Row]]:
    """Return the first object's line and names, and all objects, of a JSONL file."""

    def rows() -> Iterator[Row]:
        for line, source in enumerate(text.split("\n"), start=1):
            if source.strip():
                yield line, _object(path, line, source)

    top, first = next(rows())
    return top, list(first), rows()


def _object(path: Path, line: int, source: str) -> Mapping[str, Any]:
    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            raise ValueError("a name stands twice in one object")
        return fields

    def no_number(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    must = 'a line must be an object such as {"text": "…", "label": "…"}'
    try:
        found = json.loads(source, object_pairs_hook=unique, parse_constant=no_number)
    except json.JSONDecodeError as fault:
        refuse(path, line, f"not JSON at character {fault.pos + 1} ({fault.msg})", must)
    except (ValueError, RecursionError) as fault:
        refuse(path, line, f"not JSON ({fault})", must)
    if not isinstance(found, dict):
        refuse(path, line, f"a JSON {type(found).__name__}, not an object", must)
    fields: dict[str, Any] = {}
    for name, value in found.items():
        if name.strip() in fields:
            refuse(path, line, f"two fields are named {name.strip()!r}", "every name must differ")
        fields[name.strip()] = value
    return fields


def _column(path: Path, top: int, columns: list[str], role: str, named: str | None) -> str:
    """Return the column named or, if none is, the one called like its role in any case."""
    wanted = role if named is None else named.strip()
    alike = [name for name in columns if name.lower() == role] if named is None else []
    if wanted in columns:
        return wanted
    if len(alike) == 1:
        return alike[0]
    listed = ", ".join(repr(name) for name in columns)
    refuse(
        path,
        top,
        f"there is no column {wanted!r}",
        f"say which of these is the {role} ({role}_column): {listed}",
    )


def _text(path: Path, line: int, row: Mapping[str, Any], column: str) -> str:
    text = _field(path, line, row, column)
    if not isinstance(text, str):
        refuse(path, line, f"{column!r} is {text!r:.40}", "a text must be a string")
    _check_unicode(path, line, text, column)
    return text


def _check_unicode(path: Path, line: int, text: str, column: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        refuse(path, line, f"{column!r} has half of a surrogate pair", "it must be Unicode text")


def _label(path: Path, line: int, row: Mapping[str, Any], column: str) -> str:
    label = _field(path, line, row, column)
    if isinstance(label, float):
        if not math.isfinite(label):
            refuse(path, line, f"{column!r} is more than a float holds", "a label must be finite")
        label = int(label) if label.is_integer() else label  # 1.0 is 1
    if isinstance(label, (bool, int, float)):
        label = json.dumps(label)
    if label is not None and not isinstance(label, str):
        refuse(path, line, f"{column!r} is {label!r:.40}", "a label must be a string or a number")
    if not label or not label.strip():
        refuse(path, line, f"the label ({column!r}) is empty", "every row needs one")
    _check_unicode(path, line, label, column)
    return label.strip()


def _field(path: Path, line: int, row: Mapping[str, Any], column: str) -> Any:
    if column not in row:
        listed = ", ".join(repr(name) for name in row)
        refuse(path, line, f"there is no {column!r} among {listed}", "every object needs one")
    return row[column]
