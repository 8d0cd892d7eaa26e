"""Files and folders written atomically: complete, or as they were before.

Each is written under a temporary name beside its own, synced to disk, then renamed: whenever the
process is killed, whatever has the final name is complete. A leftover temporary name tells which
name it was for.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

LEFT = re.compile(r"\.(.+)\.\d+\.(?:part|old)")  # left by an interrupted write of name \1


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is either complete or as it was before."""
    write_files(path.parent, {path.name: text.encode()})


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files of a folder likewise, and wait until their names are on disk, too."""
    replace_files({folder / name: content for name, content in files.items()})
    _sync_folder(folder)


def replace_files(files: Mapping[Path, bytes]) -> None:
    """Write files likewise; none gets its final name before all are written.

    A file that replaces another keeps its mode.
    """
    parts = {path: _beside(path, "part") for path in files}
    try:
        for path, content in files.items():
            write_synced(parts[path], content)
            if path.exists():
                shutil.copymode(path, parts[path])
        for path, part in parts.items():
            os.replace(part, path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of files so that it is either complete or as it was before.

    Between two renames there is no folder: after a kill there, `put_back` restores the old one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    parts = _beside(folder, "part")
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir()
    try:
        for name, content in files.items():
            write_synced(parts / name, content)
    except OSError:  # if the disk is full, the space is needed
        shutil.rmtree(parts, ignore_errors=True)
        raise
    _sync_folder(parts)
    if folder.exists():  # a folder cannot be renamed onto one with content
        aside = _beside(folder, "old")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(folder, aside)
        os.rename(parts, folder)
        shutil.rmtree(aside)
    else:
        os.rename(parts, folder)
    _sync_folder(folder.parent)


def put_back(folder: Path, ours: Callable[[str], object]) -> None:
    """Restore folders that were moved aside for new ones that never took their place."""
    for aside, name in _left(folder, ours):
        if aside.suffix == ".old" and not name.exists():
            os.rename(aside, name)


def sweep(folder: Path, ours: Callable[[str], object]) -> None:
    """Delete leftovers of writes to names that `ours` accepts; no write may be in progress."""
    for path, _ in _left(folder, ours):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def left_of(name: str, ours: Callable[[str], object]) -> str | None:
    """Return the name that a leftover temporary name was for; None if that is not of `ours`."""
    found = LEFT.fullmatch(name)
    return found[1] if found is not None and ours(found[1]) else None


def _left(folder: Path, ours: Callable[[str], object]) -> list[tuple[Path, Path]]:
    """Return leftovers of interrupted writes of `ours` in a folder, each with its intended path."""
    found = ((path, left_of(path.name, ours)) for path in folder.glob(".*"))
    return [(path, folder / name) for path, name in found if name is not None]


def _beside(path: Path, end: str) -> Path:
    """Return a temporary path beside a path, which `LEFT` matches."""
    return path.with_name(f".{path.name}.{os.getpid()}.{end}")


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on disk.

    Raises:
        OSError: with the file's name, which errors raised by a write lack.
    """
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as fault:
        raise OSError(fault.errno, fault.strerror, str(path)) from fault


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
