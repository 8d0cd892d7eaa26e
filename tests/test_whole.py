"""Files are either complete or as they were before."""

import os

import pytest

from twofold.core import whole


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_half_a_file_is_not_left(tmp_path, monkeypatch, fault):
    """If the disk is full, or the user interrupts."""
    (tmp_path / "a").write_text("before")

    def ended(handle):
        raise fault

    monkeypatch.setattr(os, "fsync", ended)
    words = "No space left on device: '.*a.*part'" if isinstance(fault, OSError) else None
    with pytest.raises(type(fault), match=words):
        whole.write_text(tmp_path / "a", "after")
    assert [x.name for x in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "before"


def test_a_file_that_takes_another_ones_place_has_its_mode(tmp_path):
    (tmp_path / "a").write_text("before")
    (tmp_path / "a").chmod(0o640)
    whole.write_text(tmp_path / "a", "after")
    assert (tmp_path / "a").read_text() == "after"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_no_file_of_several_takes_its_place_before_all_are_written(tmp_path, monkeypatch):
    write = whole.write_synced

    def full(path, content):
        write(path, content)
        if "b" in path.name:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(whole, "write_synced", full)
    with pytest.raises(OSError, match="No space left"):
        whole.write_files(tmp_path, {"a": b"1", "b": b"2"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "of"),
    [
        (".a.12.part", "a"), (".a.12.old", "a"), (".a.1.2.part", None), (".a.part", None),
        ("a.12.part", None), (".b.12.part", None), (".a.12.part.x", None),
    ],
)  # fmt: skip
def test_what_is_left_of_a_name_is_known(name, of):
    assert whole.left_of(name, {"a"}.__contains__) == of
