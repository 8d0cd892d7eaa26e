"""Foreign modules, and what happens to those that crash or hang on import."""

import json
import time

import pytest
from typer.testing import CliRunner

from twofold.core.cli import app
from twofold.core.verify.foreign import apart

SOUND = "def f(x):\n    return x.softmax(-1)\n"
BAD = {
    "hangs": ("while True: pass", "it does not end within "),
    "crashes": ("import os\nos.abort()", "it ended the process by SIGABRT"),
    "exits": ("raise SystemExit(3)", "it ended the process with status 3"),
    "raises": ("1 / 0", "'raises:f' cannot be imported: ZeroDivisionError: division by zero"),
}


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    for name, (body, _) in {**BAD, "sound": (SOUND, "")}.items():
        (tmp_path / f"{name}.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize("name", BAD)
def test_verify_tells_it_within_the_limit_and_goes_on(name, tmp_path):
    result, began = tmp_path / "result.json", time.perf_counter()
    few = ["--op", "softmax", "--dtype", "float32", "--examples", "2", "--json", str(result)]
    done = CliRunner().invoke(app, ["verify", f"{name}:f", "sound:f", *few, "--limit", "3"])
    assert done.exit_code == 2 and BAD[name][1] in done.output, done.output
    assert time.perf_counter() - began < apart.LIMIT
    said = json.loads(result.read_text())
    assert said["sound:f"]["holds"] and not said[f"{name}:f"]["judged"]
    (failure,) = said[f"{name}:f"]["failures"]
    assert (f"while '{name}:f' was imported" in failure) == (name != "raises")


@pytest.mark.parametrize("name", BAD)
def test_bench_tells_it_before_it_races(name):
    few = ["--quick", "--against", "sound:f", "--against", f"{name}:f", "--limit", "3"]
    done = CliRunner().invoke(app, ["bench", "softmax", *few])
    assert done.exit_code == 2 and BAD[name][1] in done.stderr, done.output
    assert "limits measured" not in done.output


def test_a_sound_import_says_nothing():
    apart.check_import("sound:f")
    with pytest.raises(ValueError, match="module 'sound' has no function 'g'"):
        apart.check_import("sound:g")
