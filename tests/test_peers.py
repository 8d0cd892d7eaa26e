"""The table of peers, its command, and the reproductions of its findings."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from twofold.core.cli import app
from twofold.core.verify.foreign import Verdict
from twofold.core.verify.peers import finding, findings, judging, peer, table

SCRIPTS = Path(__file__).parent.parent / "benchmarks" / "peer_faults"
IMPORTED = {
    "torch": "torch",
    "liger": "liger_kernel",
    "fla": "fla",
    "sglang": "sglang",
    "unsloth": "unsloth",
    "cce": "cut_cross_entropy",
    "flag": "flag_gems",
}


def test_the_table():
    assert len({peer.name for peer in table.PEERS}) == len(table.PEERS)
    assert {k.peer for k in findings.KNOWN} <= {peer.name for peer in table.PEERS}
    with pytest.raises(ValueError, match="peer is 'nobody'; it must be one of sdpa math, "):
        table.named(["nobody"])


def test_every_reproduction_is_of_a_finding_or_says_what_it_shows():
    listed = {k.reproduction for k in findings.KNOWN if k.reproduction}
    there = {path.stem for path in SCRIPTS.glob("*.py")}
    assert listed <= there
    assert there - listed == set(findings.BY_HAND)


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.stem)
def test_the_fault_is_still_there(path):
    package = IMPORTED[path.stem.split("_")[0]]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    if path.stem == "torch_flex_compiled" and shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "must be" in done.stdout


def test_what_is_missing_is_a_line_and_the_rest_goes_on(tmp_path, monkeypatch):
    ours = peer.Peer("nothing", "attention", "nowhere:f", "no-such-distribution", "f")
    gelu = next(peer for peer in table.PEERS if peer.name == "torch relu")
    monkeypatch.setattr(table, "PEERS", (ours, gelu))
    result = tmp_path / "peers.json"
    done = CliRunner().invoke(app, ["verify", "peers", "--examples", "3", "--json", str(result)])
    assert done.exit_code == 0 and "Traceback" not in done.output
    assert "no-such-distribution is not installed" in done.output and "holds" in done.output
    missing, judged = json.loads(result.read_text())["peers"]
    assert missing["missing"] and not missing["failures"]
    assert [row["precision"] for row in judged["precisions"]] == list(gelu.precisions)


def test_an_unlisted_failure_is_unexplained_and_a_listed_one_has_its_reason(monkeypatch):
    said = [
        "backward float32 dq: dq[0] is nan",
        "backward float32 dk: dk[0] is 1\n  foreign.again('f', 'attention', seqlen_q=1)",
        "it ended the process by SIGSEGV\n  foreign.again('f', 'attention', seqlen_q=2)",
    ]
    entry = finding.Known("sdpa math", "float32", "dq, dv", finding.FAULT, "so it is")
    monkeypatch.setattr(findings, "KNOWN", (entry,))
    judged = judging.Judged(table.PEERS[0], verdict=Verdict(failures=said))
    first, second, third = judged.failures()
    assert (first.kind, second.kind) == (finding.FAULT, finding.UNEXPLAINED)
    assert first.again == second.again == "foreign.again('f', 'attention', seqlen_q=1)"
    assert (third.output, third.kind) == ("", finding.UNEXPLAINED)
    assert findings.gone(["sdpa math"], []) == [entry]
    assert findings.gone(["sdpa math"], [entry]) == findings.gone(["sdpa flash"], []) == []
