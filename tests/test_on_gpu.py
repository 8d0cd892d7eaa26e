"""The script that runs everything on a GPU, with stubs for everything it calls."""

import os
import re
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "on_gpu.sh"
CALL = 540  # seconds, of one group
STUB = """#!/usr/bin/env bash
echo "${0##*/} $*" >>"$CALLS"
for given in "$@"; do
  [[ ${before:-} == --json ]] && echo "{}" >"$given"
  before=$given
done
[[ -n ${FAILS:-} && "$*" == *"$FAILS"* ]] && exit 3
[[ -n ${HANGS:-} && "$*" == *"$HANGS"* ]] && exec sleep 20
exit 0
"""
UNHURRIED = """#!/usr/bin/env bash
echo "timeout $*" >>"$CALLS"
while [[ $1 == -* ]]; do [[ $1 == --signal || $1 == --kill-after ]] && shift; shift; done
shift
exec "$@"
"""


@pytest.fixture
def press(tmp_path):
    """Run the script with stubs; return its outcome, and what it called with which arguments."""
    stubs = tmp_path / "bin"
    stubs.mkdir()

    def run(*given, stubbed=("python3", "nvidia-smi", "compute-sanitizer"), **environment):
        for name in stubbed:
            path = stubs / name
            path.write_text(UNHURRIED if name == "timeout" else STUB)
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        calls = tmp_path / "calls"
        calls.write_text("")
        path = f"{stubs}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", SCRIPT, *given],
            capture_output=True, text=True, env={**os.environ, "PATH": path, "CALLS": str(calls)}
            | environment,
        )  # fmt: skip
        return done, calls.read_text().splitlines()

    return run


def listed(press):
    """Return the parts' time limits, by group."""
    found = {}
    for line in press("--list")[0].stdout.splitlines():
        name, limit = line.split()
        if line.startswith(" "):
            found[list(found)[-1]][name] = int(limit)
        else:
            found[name] = {}
    return found


def test_every_part_has_a_limit_and_every_group_is_one_call(press):
    groups = listed(press)
    names = [name for parts in groups.values() for name in parts]
    assert len(set(names)) == len(names) > 20
    for parts in groups.values():
        assert min(parts.values()) > 0 and sum(parts.values()) <= CALL


def test_all_is_run_with_its_limit(press, tmp_path):
    """And what never ran on a GPU runs by itself, after the tests."""
    groups = listed(press)
    done, calls = press(
        tmp_path / "out", stubbed=("python3", "nvidia-smi", "compute-sanitizer", "timeout")
    )
    assert done.returncode == 0
    limits = [int(re.search(r"--kill-after 10 (\d+)", x)[1]) for x in calls if " --kill" in x]
    assert limits == [limit for parts in groups.values() for limit in parts.values()]
    suite, alone = (x for x in calls if x.startswith("python3 -m pytest") and "hoppers_own" in x)
    assert "--deselect tests/test_linear_variants.py::test_hoppers_own" in suite
    assert "-x tests/test_linear_variants.py::test_hoppers_own" in alone


def test_scripts_are_there_and_have_the_options(press, tmp_path):
    _, calls = press(tmp_path / "out")
    shared = (ROOT / "benchmarks" / "harness.py").read_text()
    made = [x.split() for x in calls if x.startswith("python3 benchmarks/")]
    assert len(made) > 10
    for _, script, *options in made:
        source = (ROOT / script).read_text()
        for option in (x for x in options if x.startswith("--")):
            keyword = f"{option[2:].replace('-', '_')}={{"
            assert keyword in source or f'"{option}"' in source + shared, (script, option)


def test_who_fails_or_hangs_takes_nothing_with_it(press, tmp_path):
    """Finished parts are in the archive; those without time left are named."""
    out = tmp_path / "out"
    done, _ = press(
        out, "machine", "verify", "train_step", "lockstep",
        FAILS="verify --examples", HANGS="train_step", SECONDS_LEFT="3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = (out / "summary.log").read_text().splitlines()
    assert [line.split(",")[0] for line in said] == [
        "machine: status 0", "verify: status 3", "train_step: status 124", "lockstep: not begun",
    ]  # fmt: skip
    with tarfile.open(out / "results.tar.gz") as archive:
        names = {name.removeprefix("./") for name in archive.getnames()}
        assert archive.extractfile("./summary.log").read().decode().splitlines() == said
    assert {"gpu.log", "machine.log", "verify.json", "train_step.log"} <= names
    assert sorted(x.name for x in out.iterdir()) == ["loose", "results.tar.gz", "summary.log"]
    near = [x for x in out.rglob("*") if x.is_file() and len(x.relative_to(out).parts) <= 3]
    assert len(near) == 2, "no more comes back"


def test_a_part_that_is_killed_leaves_what_was_done(press, tmp_path):
    """The archive is written after every part, not only at the end."""
    out = tmp_path / "out"
    with pytest.raises(subprocess.TimeoutExpired):
        environment = {**os.environ, "CALLS": os.devnull}
        press("--list")  # makes the stubs
        environment["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(
            ["bash", SCRIPT, out, "lockstep", "train_step"],
            capture_output=True, timeout=3, env=environment | {"HANGS": "train_step"},
        )  # fmt: skip
    with tarfile.open(out / "results.tar.gz") as archive:
        assert "./lockstep.json" in archive.getnames()


def test_a_name_that_is_none_is_refused(press, tmp_path):
    done, calls = press(tmp_path / "out", "call1", "nobody")
    assert done.returncode == 2 and "no part nobody" in done.stderr
    assert calls == [] and not (tmp_path / "out").exists()
