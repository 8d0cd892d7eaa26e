"""What pages say in figures and code is that of the results and the sources."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = [BENCHMARKS / "readme.py", *sorted(BENCHMARKS.glob("*_page.py"))]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_page_is_what_its_script_writes(script):
    done = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_link_of_a_page_leads_somewhere():
    root = BENCHMARKS.parent
    pages = [root / "README.md", root / "reference" / "README.md", *BENCHMARKS.glob("*.md")]
    assert len(pages) >= len(SCRIPTS)
    links = [
        (page, link)
        for page in pages
        for link in re.findall(r"\]\(([^)#\s]+)[)#]", page.read_text())
        if "://" not in link
    ]
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []
