"""File one GPU's results where the pages look for them: results/gpu, named by device and date.

    python benchmarks/collect.py FOLDER…            from `on_gpu.sh`, or with files named alike
    python benchmarks/collect.py FOLDER… --carry

All files KIND.json and KIND-….json in the folders, and in archives there, are read. Those of one
kind are merged, together with what the same machine measured on the same day: races of several
operators, parts of attention's steps, questions, runs of a precision. A result that lacks something
that the newest of its kind has is not filed, as the pages would lose it. With --carry it is filed,
and what it lacks is taken from that one, if that is of the same machine and versions; the result
then names the one it was taken from.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import harness
from committed import every

from twofold.core.bench import machine

Found = dict[str, Any]

TRAINED = "train-movie"
KINDS = (
    "attention_steps", "attention_tuning", "attention_variants", "bench", "growth", "inference",
    "linear_variants", "tile_tuning", "train_step", TRAINED,
)  # fmt: skip
MACHINE = "machine"  # what undescribed results were measured on
# Lists of entries, and the field that tells entries apart.
TOLD_BY = {"races": ("operator", "problem", "dtype", "pass"), "runs": ("precision", "seed")}
BY_TITLE = ("races", "utilisation", "kernels", "reasons")  # of whole models, by their race's title
ASIDE = {"bench", "command", "left", "note", "carried"}  # fields that are not measured


def read(folder: Path) -> Iterator[tuple[str, Found]]:
    """Yield the name, without its suffix, and the content of every result in a folder, once."""
    seen = set()
    for name, text in _texts(folder):
        if (name, text) not in seen:
            seen.add((name, text))
            try:
                yield name, json.loads(text)
            except json.JSONDecodeError:  # of a part that was killed while writing
                print(f"{name}.json is cut short: left")


def _texts(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*.json")):
        yield path.stem, path.read_bytes()
    for path in sorted(folder.rglob("*.tar.gz")):
        with tarfile.open(path) as archive:
            for member in archive.getmembers():
                file = archive.extractfile(member)
                if file is not None and member.name.endswith(".json"):
                    yield Path(member.name).stem, file.read()


def kind_of(name: str) -> str:
    """Return the kind of result that a file's name indicates, "" for none."""
    return next((kind for kind in KINDS if re.fullmatch(f"{kind}(-.*)?", name)), "")


def body(found: Found) -> Found:
    """Return the part of a result that says what it ran on: one level down for `twofold bench`."""
    inner: Found = found.get("bench", found)
    return inner


def trained(name: str, run: Found, on: Found) -> Found:
    """Return a run of `twofold train` as a result: its file is named after its precision."""
    precision = name.removeprefix(f"{TRAINED}-")
    made = f"twofold train --side {run['side']} --precision {precision} --seed {run['seed']}"
    return {"ran_on": on, "command": made, "runs": [{"precision": precision, **run}]}


def together(before: Found, result: Found) -> Found:
    """Return two results of a kind as one; where both have an entry, the later one counts."""
    both = harness.beside(before, result)
    for name, keys in TOLD_BY.items():
        lists = [x[name] for x in (before, result) if isinstance(x.get(name), list)]
        if lists:
            told = {tuple(x.get(key) for key in keys): x for each in lists for x in each}
            both[name] = list(told.values())
    for name in BY_TITLE:
        if titles := _titled(before, name) | _titled(result, name):
            both[name] = titles
    return both


def measured(result: Found) -> set[str]:
    """Return what a result has: operators, runs, models, parts, calls, or lists by name."""
    lists = {name for name, x in result.items() if isinstance(x, list)} - ASIDE - TOLD_BY.keys()
    entries = {_part(x) for x in result.get("parts", ())} | set(_calls(result))
    models = {_model(title) for title in _titled(result, "races")}
    return lists | entries | models | {about(x) for name in TOLD_BY for x in _listed(result, name)}


def _part(name: str) -> str:
    return f"part {name}"


def _model(title: str) -> str:
    """Return which model a race of whole models is of, without the sizes, which may change."""
    return f"race of {title.partition(',')[0]}"


def _calls(result: Found) -> Iterator[str]:
    """Yield the calls that were tuned, in whichever group: pages do not care."""
    for group in result.get("groups", {}).values():
        yield from (call for call, figures in group.items() if isinstance(figures, dict))


def about(entry: Found) -> str:
    """Return what an entry of a list is of."""
    if "operator" in entry:
        return str(entry["operator"])
    return f"{entry.get('precision')}, seed {entry.get('seed')}"  # a mean needs all of them


def only(result: Found, wanted: set[str]) -> Found:
    """Return a result with only the wanted measurements."""
    kept = {name: x for name, x in result.items() if not isinstance(x, list) or name in wanted}
    if "parts" in result:
        kept["parts"] = {x: y for x, y in result["parts"].items() if _part(x) in wanted}
    if "groups" in result:
        kept["groups"] = {
            group: {call: figures for call, figures in of.items() if call in wanted}
            for group, of in result["groups"].items()
        }
    for name in BY_TITLE:
        if titles := _titled(result, name):
            kept[name] = {title: x for title, x in titles.items() if _model(title) in wanted}
    for name in TOLD_BY:
        if entries := [x for x in _listed(result, name) if about(x) in wanted]:
            kept[name] = entries
    return {name: x for name, x in kept.items() if name not in ASIDE - {"command"}}


def _listed(result: Found, name: str) -> list[Found]:
    entries = result.get(name, [])
    return entries if isinstance(entries, list) else []


def _titled(result: Found, name: str) -> Found:
    entries = result.get(name, {})
    return entries if isinstance(entries, dict) else {}


def completed(kind: str, result: Found, carry: bool) -> Found | None:
    """Return a result merged with its machine's of that day; None if it lacks too much."""
    path = harness.place(kind, result["ran_on"])
    if path.exists():
        there = body(json.loads(path.read_text()))
        if not harness.same_machine(there["ran_on"], result["ran_on"]):
            raise SystemExit(f"{path} is of another machine or other versions")
        result = together(there, result)
    for other, found in every(kind, path.parent):
        before = body(found)
        lacking = measured(before) - measured(result)
        if other == path or not lacking:
            return result
        print(f"{kind} lacks {', '.join(sorted(lacking))}, which {other.name} has", end="")
        if not carry or not harness.same_machine(before["ran_on"], result["ran_on"]):
            print(": not written")
            return None
        print(": carried over")
        carried = {"from": other.name, "what": sorted(lacking), "note": before.get("note", "")}
        result = together(only(before, lacking), result)
        return {**result, "carried": [*before.get("carried", ()), carried]}
    return result


def collect(folders: Sequence[Path], carry: bool) -> list[Path]:
    """Write a result of every kind that is complete; return where."""
    read_from = [pair for folder in folders for pair in read(folder)]
    machines = [found["ran_on"] for name, found in read_from if name == MACHINE]
    found: dict[str, list[Found]] = {}
    for name, result in read_from:
        kind = kind_of(name)
        if kind == TRAINED and "ran_on" not in result:
            if not machines:
                raise SystemExit(
                    f"{name}.json does not say what it ran on, nor does {MACHINE}.json"
                )
            result = trained(name, result, machines[-1])
        if kind:
            found.setdefault(kind, []).append(body(result))
        elif name != MACHINE:
            print(f"no page has {name}.json")
    ons = [result["ran_on"] for results in found.values() for result in results]
    if others := [on for on in ons if not harness.same_machine(on, ons[0])]:
        raise SystemExit(f"of two machines, to be collected apart: {ons[0]} and {others[0]}")
    written = []
    for kind, results in found.items():
        results.sort(key=lambda result: str(result["ran_on"]["date"]))
        result = results[0]
        for later in results[1:]:
            result = together(result, later)
        whole = completed(kind, result, carry)
        if whole is not None:
            path = harness.place(kind, whole["ran_on"])
            nested = kind in ("bench", "growth")
            path.write_text(harness.written({"bench": whole} if nested else whole))
            written.append(path)
    return written


def main() -> None:
    """Collect, and say what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="*", help="with results, or archives of them")
    parser.add_argument("--carry", action="store_true", help="what is lacking from the newest")
    parser.add_argument("--machine", type=Path, help="write what this machine is into a file")
    asked = parser.parse_args()
    if asked.machine:
        asked.machine.write_text(harness.written({"ran_on": machine.ran_on(2, "cuda")}))
    written = collect(asked.folders, asked.carry)
    print("\n".join(f"written: {path}" for path in written))
    if asked.folders and not written:
        sys.exit(1)


if __name__ == "__main__":
    main()
