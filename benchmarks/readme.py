"""Write the figures of the README anew from the committed results and the sources.

python benchmarks/readme.py            rewrites what stands between the README's markers
python benchmarks/readme.py --check    exits with status 1 where that would change anything
"""

from __future__ import annotations

import html
import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_tables
import harness
import pages

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# Kernels of OpenBLAS about as quick as torch's library on a processor where that takes no AVX-512.
LIKE_THEIRS = "Haswell"
OURS = "twofold, NumPy"
SOURCES = f"from `{RESULTS.relative_to(ROOT)}/"


def newest(prefix: str) -> tuple[str, dict[str, Any]]:
    """Return name and content of the latest result: names end with a date."""
    found = (path for path in RESULTS.glob(f"{prefix}*.json") if LIKE_THEIRS not in path.stem)
    path = max(found, key=lambda p: p.stem[-10:])
    return path.name, json.loads(path.read_text())


def machine(on: dict[str, Any]) -> str:
    """Say in words what a result ran on."""
    blas = f" with {on['blas']}" if "blas" in on else ""
    return (
        f"{on.get('gpu', on['cpu'])}, {on['threads']} threads, Python {on['python']}, "
        f"NumPy {on['numpy']}{blas}, PyTorch {on['torch']}, Triton {on['triton']}, {on['date']}"
    )


def products(found: dict[str, Any]) -> str:
    """Say what each side's library multiplied in the same run."""
    rates = found.get("product_rates")
    return f"; {harness.multiply(rates)}" if rates else ""


def accuracy() -> str:
    """Test accuracy of the default run beside its baselines."""
    name, found = newest("train-movie")
    runs = found["runs"]
    seeds = ", ".join(f"{run['test_accuracy']:.3f}" for run in runs)
    baselines = runs[0]["baselines"]
    lines = [
        "| movie reviews, sign of the rating | test accuracy |",
        "|---|---|",
        *(f"| {n.replace('_', ' ')} | {value:.3f} |" for n, value in baselines.items()),
        f"| **this Transformer**, mean of three seeds ({seeds}) | "
        f"**{found['mean_test_accuracy']:.3f}** |",
        "",
        f"{runs[0]['parameters']:,} parameters; {max(r['seconds'] for r in runs):.0f} s and "
        f"{max(r['peak_memory_mb'] for r in runs)} MB at most, on {machine(found['ran_on'])}. "
        f"`python benchmarks/bench_accuracy.py --save`, {SOURCES}{name}`.",
    ]
    return "\n".join(lines)


def finetuned() -> str:
    """Test accuracy of fine-tuning, and how fast a BERT is."""
    lines = []
    if found := sorted(RESULTS.glob("finetune-movie*.json")):
        result = json.loads(found[-1].read_text())
        runs = result["runs"]
        seeds = ", ".join(f"{run['test_accuracy']:.3f}" for run in runs)
        of = "one seed" if len(runs) == 1 else f"the mean of {len(runs)} seeds ({seeds})"
        lines += [
            f"Movie reviews, test accuracy: **{result['mean_test_accuracy']:.3f}**, {of}; "
            f"{max(r['seconds'] for r in runs):.0f} s and "
            f"{max(r['peak_memory_mb'] for r in runs)} MB at most, on {machine(result['ran_on'])}. "
            f"`python benchmarks/bench_accuracy.py --command finetune --seeds {len(runs)} --save`, "
            f"{SOURCES}{found[-1].name}`.",
            "",
        ]
    if list(RESULTS.glob("bert-*.json")):
        name, result = newest("bert-")
        lines += ["| race | contender | median ms | ratio |", "|---|---|--:|--:|"]
        lines += [
            f"| {race} | {contender} | {times['median_ms']:.0f} | {times['ratio']:.2f} |"
            for race, contenders in result["races"].items()
            for contender, times in contenders.items()
        ]
        rates = ", ".join(f"{who} {n:.0f}" for who, n in result["sentences_per_second"].items())
        lines += [
            "",
            f"Sentences a second: {rates}. `python benchmarks/bench_bert.py --save`, "
            f"{SOURCES}{name}`: {machine(result['ran_on'])}{products(result)}.",
        ]
    return "\n".join(lines or ["No figure stands here yet: none has been measured."])


def speed() -> str:
    """Ratios of the races that ran on the CPU."""
    lines = [*races("train_step", "training step"), *races("inference", "prediction")]
    return "\n".join((*lines, *operator_by_operator()))


def races(kind: str, heading: str) -> list[str]:
    """The races of a benchmark, and where they come from."""
    name, found = newest(kind)
    lines = [f"| {heading} | contender | median ms | ratio |", "|---|---|--:|--:|"]
    for race, contenders in found["races"].items():
        for contender, times in contenders.items():
            lines.append(
                f"| {race} | {contender} | {times['median_ms']:.2f} | {times['ratio']:.2f} |"
            )
    made = f"`python benchmarks/bench_{kind}.py --save`, {SOURCES}{name}`"
    lines += ["", f"{made}: {machine(found['ran_on'])}{products(found)}.", ""]
    for path in RESULTS.glob(f"{kind}-*{LIKE_THEIRS}-{found['ran_on']['date']}.json"):
        like = json.loads(path.read_text())
        ratios = "; ".join(
            f"{race} {contenders[OURS]['ratio']:.2f}" for race, contenders in like["races"].items()
        )
        lines += [
            f"The ratios of {OURS} under `OPENBLAS_CORETYPE={LIKE_THEIRS}`"
            f"{products(like)}: {ratios}.",
            "",
        ]
    return lines


def operator_by_operator() -> list[str]:
    """The NumPy side's time as a multiple of torch's, from the least to the most of the sizes."""
    name, found = newest("bench")
    lines = ["| NumPy ÷ torch eager | forward | backward |", "|---|--:|--:|"]
    races = found["bench"]["races"]
    for operator in dict.fromkeys(race["operator"] for race in races):
        cells = []
        for passes in (("forward", "forward and backward", "step"), ("backward",)):
            ratios = sorted(
                race["contenders"]["twofold"]["ratio"]
                for race in races
                if race["operator"] == operator and race["pass"] in passes
            )
            ends = dict.fromkeys(f"{r:.2f}" for r in (*ratios[:1], *ratios[-1:]))
            cells.append(" to ".join(ends))
        lines.append(f"| {operator} | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        f"`{found['bench']['command']} --json …`, {SOURCES}{name}`: "
        f"{machine(found['bench']['ran_on'])}. Cross-entropy is both passes, an optimizer a step.",
    ]


def operators() -> str:
    """Every operator with its files and how near its kernel came to its bound."""
    name, found = newest("verify")
    rows = found["operators"]["rows"]
    lines = ["| operator | | worst error ÷ bound | cases |", "|---|---|--:|--:|"]
    for operator in dict.fromkeys(row["operator"] for row in rows):
        bounds = ("forward", "backward")
        mine = [row for row in rows if row["operator"] == operator and row["pass_"] in bounds]
        means = (ROOT / "reference" / f"{operator}.py").read_text().split('"""')[1]
        first = means.strip().splitlines()[0].split(": ")[0].rstrip(".")
        lines.append(
            f"| [{operator}](reference/{operator}.py) · [kernel](kernels/{operator}.py) · "
            f"[contract](core/verify/contracts/{operator}.py) | {first} | "
            f"{max(row['share'] for row in mine):.2f} | {sum(row['cases'] for row in mine)} |"
        )
    lines += [
        "",
        f"`twofold verify --json …`, {SOURCES}{name}`. Near 1 is as it should be where a result is "
        "one rounding of an exact number: then the bound is that rounding.",
    ]
    return "\n".join(lines)


def tightness() -> str:
    """How much of their bounds the kernels use, by operator and precision."""
    found = json.loads((RESULTS / "tightness.json").read_text())["tightness"]
    rows = found["rows"]
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    lines = [
        f"| error ÷ bound | {' | '.join(precisions)} | undecided | outside |",
        "|---|" + "--:|" * (len(precisions) + 2),
    ]
    for operator in dict.fromkeys(row["operator"] for row in rows):
        mine = [row for row in rows if row["operator"] == operator]
        cells = []
        for precision in precisions:
            some = [row for row in mine if row["precision"] == precision]
            medians = (
                f"{sorted(row[name] for row in some)[len(some) // 2]:.4f}"
                for name in ("median", "likely_median")
                if some
            )
            cells.append(" · ".join(dict.fromkeys(medians)))
        undecided = sum(row["vacuous"] * row["elements"] for row in mine)
        outside = sum(row["violations"] + row["likely_violations"] for row in mine)
        share = undecided / sum(row["elements"] for row in mine)
        lines.append(f"| {operator} | {' | '.join(cells)} | {share:.1%} | {outside} |")
    versions = ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    lines += [
        "",
        "The middle output's middle element; after a dot by the probabilistic bound, where that is "
        f"another number. {sum(row['elements'] for row in rows):,} elements, the largest error "
        f"{max(row['worst'] for row in rows):.3f} of its bound. `twofold verify tightness --json "
        f"…`, {SOURCES}tightness.json`: {found['side']}, {versions}.",
    ]
    return "\n".join(lines)


# What attention can be asked for, how, and the tests that show it.
FEATURES = (
    ("grouped-query and multi-query heads", "k, v of K heads, K a divisor of H",
     "test_grouped_heads_are_repeated_keys"),
    ("the same between projections, none of the keys repeated",
     "multi_head_attention.forward(…, num_heads=H, num_kv_heads=K)", "test_heads_are_views"),
    ("causal, bottom-right or top-left", "causal=True, \"top-left\"",
     "test_each_feature_goes_with_each_other"),
    ("sliding window", "window_size=(left, right)", "test_tiles_that_nobody_sees_are_not_visited"),
    ("softcap", "softcap", "test_each_feature_goes_with_each_other"),
    ("ALiBi", "alibi_slopes", "test_each_feature_goes_with_each_other"),
    ("additive bias, broadcast in any way, with its gradient", "bias",
     "test_each_feature_goes_with_each_other"),
    ("attention sinks, with their gradient", "sinks", "test_a_sink_is_a_key_without_a_value"),
    ("own functions of the scores, with their contract", "score_mod=ScoreMod(f, derivative, args)",
     "test_a_users_function_of_the_scores_has_a_contract"),
    ("boolean mask, key lengths, dropout", "mask, key_lengths, dropout_p, seed",
     "test_each_feature_goes_with_each_other"),
    ("mask of blocks of any size, tiles without a live one not visited", "block_mask, block_size",
     "test_tiles_of_no_live_block_are_not_visited"),
    ("sequences of any lengths packed, none padded",
     "cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k",
     "test_programs_of_packed_sequences_visit_their_own_tiles"),
    ("lse, and its gradient", "cache.lse, backward(dout, cache, dlse)",
     "test_each_feature_goes_with_each_other"),
    ("partial results merged by lse", "merge_attention.forward(outs, lses)",
     "test_attention_over_halves_of_the_keys_merged_is_attention_over_all"),
    ("weights to look at, of some queries or all", "attention_weights.weights(q, k, lse, rows)",
     "test_one_query_and_what_keys_receive_take_no_memory_for_all_weights"),
    ("attention received by each key", "attention_weights.received(q, k, lse)",
     "test_one_query_and_what_keys_receive_take_no_memory_for_all_weights"),
    ("both of packed sequences", "cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k",
     "test_weights_of_packed_sequences_are_those_of_padded_batches"),
    ("one or a few queries to a cache, in pages or not, split over keys and merged",
     "attention_decode.forward(q, k_cache, v_cache, key_lengths=, block_table=)",
     "test_the_kernel_is_that_of_attention_on_each_sequence"),
    ("the same with a bias, masks, blocks, and queries turned to their positions",
     "bias, mask, block_mask, block_size, rotary",
     "test_the_last_queries_of_a_causal_call_are_a_decoding"),
    ("the same of sequences with any numbers of new queries, packed, and with dropout",
     "cu_seqlens_q, max_seqlen_q, dropout_p, seed",
     "test_packed_queries_are_those_of_packed_attention"),
    ("numbers of 8 bits (e4m3) with a scale for every head, forward",
     "attention_fp8.forward(q, k, v, q_scale=, k_scale=, v_scale=), attention_fp8.quantize(x)",
     "test_each_feature_goes_with_8_bits"),
    ("gradients of gradients, an own function's by its second derivative",
     "attention_double_backward.backward(ddq, ddk, ddv, dout, cache, dlse)",
     "test_the_reference_passes_gradgradcheck"),
    ("rotary positions, turned as queries and keys are read", "rotary=Rotary(cos, sin, …)",
     "test_angles_of_each_row_of_a_batch_or_of_all"),
    ("all of these between projections", "multi_head_attention.forward(x, w_qkv, b_qkv, …)",
     "test_all_that_attention_takes_goes_between_projections"),
    ("head_dim up to 512", "", "test_heads_of_many_features"),
    ("nothing of size M×N in memory", "", "test_nothing_of_queries_times_keys_is_allocated"),
    ("masked tiles not visited", "", "test_tiles_that_nobody_sees_are_not_visited"),
    ("offsets past 2³¹", "", "test_offsets_pass_two_to_the_31"),
)  # fmt: skip


def features() -> str:
    """What attention can be asked for, each with the test that shows it.

    Of several tests of a name it is that of `test_attention_features`.
    """
    paths = sorted((ROOT / "tests").glob("test_*attention*.py"))
    paths.sort(key=lambda path: path.stem == "test_attention_features")
    tests = {
        name: path.relative_to(ROOT)
        for path in paths
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    rows = (
        f"| {feature} | {f'`{how}`' if how else ''} | [{test}]({tests[test]}) |"
        for feature, how, test in FEATURES
    )
    return "\n".join(("| attention | asked for by | shown by |", "|---|---|---|", *rows))


def mutants() -> str:
    """How many small faults the contracts see."""
    found = json.loads((RESULTS / "mutants.json").read_text())["mutants"]
    fates = ("mutants", "killed", "equivalent", "survived")
    lines = ["| operator | mutants | killed | equivalent | survived |", "|---|--:|--:|--:|--:|"]
    names = dict.fromkeys(row["operator"] for row in found["operators"])
    for name, operators in (*((n, {n}) for n in names), ("**all**", set(names))):
        rows = [row for row in found["operators"] if row["operator"] in operators]
        lines.append(
            f"| {name} | " + " | ".join(str(sum(r[f] for r in rows)) for f in fates) + " |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines += [
        "",
        f"`{found['command']} --json …`, {SOURCES}mutants.json`: {found['seconds']} s with "
        f"{found['jobs']} processes, {versions}. The equivalent ones and their reasons are in "
        "[core/verify/equivalents](core/verify/equivalents).",
    ]
    return "\n".join(lines)


def attention() -> str:
    """Steps (1) to (4) of attention on both sides."""
    reference = between(ROOT / "reference/attention.py", "# (1) scores", "return out, Cache")
    kernel = between(ROOT / "kernels/attention.py", "# (1) scores", "divisor, lse = log_sum")
    weigh = between(ROOT / "kernels/attention_parts.py", "def weigh", "@triton.jit").rstrip()
    return "\n".join(
        [
            "<table><tr><th>reference/attention.py</th><th>kernels/attention.py, in the loop over "
            "tiles of keys</th></tr><tr valign=top><td>",
            f"<pre>{html.escape(reference)}</pre>",
            "</td><td>",
            f"<pre>{html.escape(kernel)}</pre>",
            f"<pre>{html.escape(weigh)}</pre>",
            "</td></tr></table>",
        ]
    )


def between(path: Path, first: str, last: str) -> str:
    """Return a file's lines from the one with `first` to before the one with `last`, dedented."""
    lines = path.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if first in line)
    stop = next(i for i, line in enumerate(lines) if i > start and last in line)
    return textwrap.dedent("\n".join(lines[start:stop])).replace("  # fmt: skip", "")


SECTIONS: dict[str, Callable[[], str]] = {
    "accuracy": accuracy,
    "finetuned": finetuned,
    "speed": speed,
    "operators": operators,
    "tightness": tightness,
    "attention": attention,
    "mutants": mutants,
    "features": features,
    "gpu": gpu_tables.table,
}


def main() -> None:
    """Write the page, or check it."""
    path = ROOT / "README.md"
    pages.put(path, pages.filled(path, SECTIONS), __file__)


if __name__ == "__main__":
    main()
