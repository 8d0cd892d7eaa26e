"""What compiling for absent GPUs finds: planted faults, limits of chips, lines of the table."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from outside import python

from twofold.core.commands.verify import compile as command
from twofold.core.ops import OPERATORS
from twofold.core.verify.compiling import jobs as compile_jobs
from twofold.core.verify.compiling import table
from twofold.core.verify.compiling.chips import CHIPS, resident
from twofold.core.verify.compiling.compiled import SPILLS_AND_IS_FAST, Compiled, Share, widths

TABLE = Path(__file__).parent.parent / "benchmarks" / "results" / "compiled.txt"
SOUND = Compiled(
    "linear", "gemm_kernel", "sm_90a", "bfloat16", "BLOCK=64", warps=4, registers=128,
    shared=32768, matrix=("wgmma.bf16",), dots=True,
)  # fmt: skip


def verify_compile(*arguments, **environment):
    script = "from twofold.core.cli import main; main()"
    return python("-c", script, "verify", "compile", *arguments, **environment)


def test_planted_faults_are_found():
    done = python(Path(__file__).parent / "planted_kernels.py")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["sound"] == found["64 rows"] == found["32 rows"] == []
    assert found["spilling"][0].startswith("spills ")
    assert found["without matrix unit"] == ["multiplies matrices without the matrix unit"]
    assert found["without wgmma"] == ["multiplies 64 rows or more without wgmma"]
    assert not found["lines"], "figures depend on where a kernel's source lies"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, None),
        ({"spilled": 4}, "spills 4 bytes"),
        ({"spilled": 4, "outside": True}, None),
        ({"registers": 256}, "needs 256 registers of 255"),
        ({"shared": 232449}, "needs 232449 bytes of shared memory of 232448"),
        ({"target": "sm_80", "shared": 101377}, "needs 101377 bytes of shared memory of 101376"),
        ({"warps": 64, "registers": 32}, "needs 2048 threads of 1024"),
        ({"matrix": ()}, "multiplies matrices without the matrix unit"),
        ({"plain_dots": 1}, "multiplies matrices without the matrix unit"),
        ({"synchronous_dots": 1}, "multiplies 64 rows or more without wgmma"),
        ({"failure": "out of luck"}, "does not compile: out of luck"),
        ({"warps": 32, "registers": 255}, "does not fit: no program of it is resident"),
    ],
)
def test_a_fault_is_named(change, fault):
    assert replace(SOUND, **change).faults() == ([] if fault is None else [fault])


@pytest.mark.parametrize(
    ("chip", "registers", "shared", "warps", "programs"),
    [
        ("sm_80", 32, 0, 4, 16),  # 64 warps in all
        ("sm_80", 128, 0, 4, 4),  # 65536 registers
        ("sm_80", 129, 0, 4, 3),  # 136 a thread: 15 warps, not 16
        ("sm_80", 129, 0, 2, 6),  # of which each of four schedulers has as many: 12
        ("sm_80", 73, 0, 4, 6),  # 80 a thread
        ("sm_80", 16, 0, 4, 16),
        ("sm_80", 32, 54 * 1024, 4, 2),  # each takes a kilobyte more, of 164
        ("sm_90a", 32, 56 * 1024, 4, 4),
        ("sm_90a", 16, 0, 1, 32),  # programs in all
        ("gfx942", 128, 0, 4, 4),  # 512 registers of a SIMD
        ("gfx942", 129, 0, 4, 3),
        ("gfx942", 170, 0, 4, 2),  # 176 a lane
        ("gfx942", 257, 0, 8, 0),
        ("gfx942", 16, 0, 1, 32),
        ("gfx942", 16, 0, 2, 16),
        ("gfx942", 32, 40 * 1024, 4, 1),
        ("gfx942", 32, 32 * 1024, 4, 2),
    ],
)
def test_as_many_programs_are_resident_as_fit(chip, registers, shared, warps, programs):
    assert resident(CHIPS[chip], registers, shared, warps) == programs


@pytest.mark.parametrize(
    ("kernel", "target", "tile"),
    [(*of, tile) for of, tiles in SPILLS_AND_IS_FAST.items() for tile in tiles],
)
def test_what_spills_and_is_fast_is_named_with_its_tile(kernel, target, tile):
    named = replace(SOUND, kernel=kernel, target=target, constants=f"D=256 {tile} num_stages=3")
    assert not replace(named, spilled=400).faults()
    assert replace(named, spilled=4, constants="D=256 BLOCK_M=16").faults() == ["spills 4 bytes"]
    assert replace(named, spilled=4, target="sm_80").faults() == ["spills 4 bytes"]


def test_programs_and_their_share_of_warps_follow():
    assert SOUND.programs == 4 and SOUND.occupancy == 4 * 4 / 64
    unsupported = Compiled("linear", "-", "sm_80", "-", "", unsupported="has none")
    for none in (unsupported, replace(SOUND, failure="out of luck")):
        assert none.programs == 0
    assert unsupported.faults() == []


@pytest.mark.parametrize(
    ("assembly", "loads", "stores"),
    [
        ("ld.global.L1::evict_last.v4.b32 {%r1}, [%rd1];\nst.global.b16 [%rd1], %rs1;", 16, 2),
        ("ld.shared.v4.b32 {%r1}, [%r2];\nst.global.v2.b64 [%rd1], {%rd2};", 0, 16),
        ("cp.async.cg.shared.global [ %r1 + 0 ], [ %rd2 + 0 ], 0x10, %r3;", 16, 0),
        ("cp.async.cg.shared.global [ %r1 + 0 ], [ %rd2 + 0 ], 16;", 16, 0),
        ("global_load_dwordx4 v[0:3], v0\nbuffer_store_short v1, v2", 16, 2),
        ("buffer_load_ushort v1, v2\nglobal_store_dwordx2 v0, v1", 2, 8),
        ("global_load_ubyte v1, v2\nglobal_store_byte v1, v2", 1, 1),
    ],
)
def test_bytes_at_a_time_are_those_of_the_widest(assembly, loads, stores):
    assert widths(f"ld.global.b8 %rs1, [%rd1];\n{assembly}") == (max(loads, 1), stores)


def test_tensor_memory_limits_programs():
    assert [resident(CHIPS["sm_100a"], 32, 0, 4, columns) for columns in (0, 128, 512)] == [
        16,
        4,
        1,
    ]


def test_the_table_shows_what_differs(tmp_path):
    path = tmp_path / "compiled.txt"
    other = replace(SOUND, operator="attention")
    table.write(path, [SOUND, other])
    version, lines = table.read(path)
    assert version == table.compilers() and len(lines) == 2
    assert table.differences(lines, [other, SOUND]) == []
    old, new = table.differences(lines, [other, replace(SOUND, registers=129)])
    assert old.startswith("- linear") and " 128 " in old
    assert new.startswith("+ linear") and " 129 " in new
    (gone,) = table.differences(lines, [SOUND])
    assert gone.startswith("- attention")
    only = table.of(lines, ["linear"], ["sm_90a"], Share())
    assert table.differences(only, [SOUND]) == []
    assert not table.of(lines, ["linear", "attention"], ["sm_80"], Share())


def test_a_line_has_the_most_of_several_kernels():
    first = replace(SOUND, registers=100, shared=4096, loads=16, stores=2, matrix=("mma.bf16",))
    second = replace(SOUND, registers=120, shared=1024, loads=4, stores=8)
    columns = [replace(SOUND, target="sm_100a", tensor_columns=n) for n in (0, 512)]
    failed = replace(SOUND, failure="out of luck")
    for pair, words in (
        ((first, second), "120 0 4096 4 25% 16/8 mma.bf16 wgmma.bf16 BLOCK=64"),
        (columns, "128 0 32768 1 6% 0/0 wgmma.bf16 BLOCK=64"),
        ((SOUND, failed), "does not compile BLOCK=64"),
        ([replace(SOUND, matrix=())], "128 0 32768 4 25% 0/0 - BLOCK=64"),
    ):
        for kernels in (pair, pair[::-1]):
            (line,) = table.lines(kernels)
            assert line.split(None, 4)[:2] == ["linear", "gemm_kernel"]
            assert " ".join(line.split()[4:]) == words


def test_lines_are_sorted_and_name_what_they_are_of(tmp_path):
    unsupported = Compiled("linear", "-", "sm_80", "-", "", unsupported="has none")
    kernels = [SOUND, unsupported, replace(SOUND, operator="attention", kernel="z_kernel")]
    path = tmp_path / "new" / "compiled.txt"
    table.write(path, kernels)
    _, lines = table.read(path)
    assert [x.split()[0] for x in lines] == ["attention", "linear", "linear"]
    assert table.names(lines) == {kernel.name for kernel in kernels}
    found = table.differences([], kernels)
    assert found == sorted(f"+ {line}" for line in lines) and found[0].startswith("+ attention")
    whole = path.read_text()
    for wrong in (whole.replace(table.TITLE, "Another"), whole.replace(table.HEADER, "")):
        path.write_text(wrong)
        with pytest.raises(ValueError, match="compiled.txt is no table of compiled kernels"):
            table.read(path)


def test_shares_are_all_kernels_each_once():
    _, lines = table.read(TABLE)
    shares = [table.of(lines, OPERATORS, CHIPS, Share(3, seed)) for seed in (7, 8, 9)]
    kernels = [{x for x in share if "unsupported" not in x} for share in shares]
    assert sum(map(len, kernels)) == len(set.union(*kernels))
    assert set.union(*map(set, shares)) == set(lines)
    assert all(0.3 * len(lines) < len(share) < 0.37 * len(lines) for share in shares)
    unsupported = {x for x in lines if "unsupported" in x}
    assert unsupported and all(unsupported <= set(share) for share in shares)


def test_the_table_says_where_a_kernel_spills():
    without, outside = replace(SOUND, spilled=0), replace(SOUND, spilled=4, outside=True)
    for kernels, want in (
        ([SOUND], "0"),
        ([outside], "(4)"),
        ([without, outside], "(4)"),
        ([outside, replace(SOUND, spilled=8)], "8"),
    ):
        (line,) = table.lines(kernels)
        assert line.split()[5] == want


def test_the_command_writes_and_checks_its_table(tmp_path):
    path, result = tmp_path / "compiled.txt", tmp_path / "result.json"
    only = ("dropout", "--target", "sm_90a", "--jobs", "1")
    done = verify_compile(*only, "--table", path, "--json", result)
    assert done.returncode == 0, done.stdout + done.stderr
    made = json.loads(result.read_text())["compile"]
    assert made["holds"] and {k["kernel"] for k in made["kernels"]} == {"dropout_kernel"}
    assert {k["precision"] for k in made["kernels"]} == {"float32", "float16", "bfloat16"}
    assert verify_compile(*only, "--check", path).returncode == 0
    counted = []
    for seed in "01":
        done = verify_compile(*only, "--check", path, "--one-in", "2", "--seed", seed)
        assert done.returncode == 0, done.stdout
        counted.append(int(done.stdout.splitlines()[-1].split()[0]))
    assert sum(counted) == len(made["kernels"]) and all(counted)

    text = path.read_text()
    path.write_text(text.replace(" float16  ", " float8   ", 1))
    done = verify_compile(*only, "--check", path)
    assert done.returncode == 1
    assert "- dropout dropout_kernel" in done.stdout and "+ dropout" in done.stdout

    path.write_text(path.read_text().replace("triton ", "triton 0", 1))
    done = verify_compile(*only, "--check", path)
    assert done.returncode == 0 and "no figures compared" in done.stdout


def test_what_a_target_does_not_support_is_listed_and_no_fault(tmp_path):
    path = tmp_path / "compiled.txt"
    only = ("attention_fp8", "--target", "sm_80", "--jobs", "1")
    done = verify_compile(*only, "--table", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "unsupported: has no e4m3" in done.stdout and "0 kernels, 0 faults" in done.stdout
    (line,) = table.read(path)[1]
    assert line.split()[:5] == ["attention_fp8", "-", "sm_80", "-", "unsupported"]
    assert verify_compile(*only, "--check", path).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target", "sm_75"], "--target is 'sm_75'; it must be one of sm_80"),
        (["convolution"], "operator is 'convolution'; it must be one of"),
        (["--check", "nowhere.txt"], "nowhere.txt"),
        (["--check", __file__], "is no table of compiled kernels"),
    ],
)
def test_bad_options_name_themselves(arguments, words):
    done = verify_compile(*arguments)
    assert done.returncode == 2 and words in " ".join(done.stderr.split())


def test_the_interpreter_is_refused():
    done = verify_compile("dropout", TRITON_INTERPRET="1")
    assert done.returncode == 2 and "TRITON_INTERPRET is 1" in done.stderr


def test_what_differs_is_compiled_again_before_it_is_believed(monkeypatch):
    wanted, first = SOUND, replace(SOUND, registers=129)
    (line,) = table.lines([wanted])

    for answers, kernel in ((1, wanted), (3, wanted), (command.AGAIN, first)):
        made = [[first]] * (answers - 1) + [[kernel]]

        def compile_all(operators, targets, jobs, only, made=made):
            assert only == {SOUND.name}
            yield made.pop(0), 1.0

        monkeypatch.setattr(compile_jobs, "compile_all", compile_all)
        found, seconds = command.settled([first], [line], ["linear"], ["sm_90a"], 1)
        assert found == [kernel] and seconds == answers and not made
    assert command.settled([wanted], [line], ["linear"], ["sm_90a"], 1) == ([wanted], 0.0)

    dead = replace(SOUND, kernel="", failure="its process ended")  # nothing of it can be made again
    monkeypatch.setattr(compile_jobs, "compile_all", lambda *_, only: iter([([], 1.0)]))
    found, _ = command.settled([wanted, dead], [line], ["linear"], ["sm_90a"], 1)
    assert found == [wanted, dead]


PLANNED = """
import sys
from pathlib import Path
from twofold.core import ops
from twofold.core.verify.compiling import compiles, table
from twofold.core.verify.compiling.chips import CHIPS
version, lines = table.read(Path(sys.argv[1]))
if version == table.compilers():
    there = {
        kernel.name
        for operator in ops.OPERATORS
        for chip in CHIPS
        for kernel in compiles.compile_operator(operator, chip, make=lambda name, launch: name)
    }
    for name in sorted(there ^ table.names(lines)):
        print("+" if name in there else "-", *name)
"""


def test_the_committed_table_has_every_kernel_there_is():
    done = python("-c", PLANNED, TABLE)
    assert done.returncode == 0, done.stderr
    assert not done.stdout, f"twofold verify compile --table {TABLE} writes it"


SHARED = """
from collections import Counter
from twofold.core.verify.compiling import compiles
from twofold.core.verify.compiling.compiled import ALL, Share
def planned(share):
    make = lambda name, launch: name
    kernels = compiles.compile_operator("optimizers", "sm_90a", share=share, make=make)
    return Counter(kernel.name for kernel in kernels)
print(planned(ALL) == sum((planned(Share(3, seed)) for seed in range(3)), Counter()))
"""


def test_a_kernel_that_two_cases_call_is_in_one_share():
    done = python("-c", SHARED)
    assert done.stdout.strip() == "True", done.stderr


CHOSEN = """
from pathlib import Path
import sys
from twofold.core.verify.compiling import jobs as compile_jobs
def compiled(targets, only=None):
    ((made, _),) = compile_jobs.compile_all(["dropout"], targets, 1, only=only)
    return made, {str(p): p.stat().st_mtime_ns for p in Path(sys.argv[1]).glob("*/*.amdgcn")}
if __name__ == "__main__":
    whole, before = compiled(["gfx942"])
    _, same = compiled(["gfx942"])
    name = whole[0].name
    made, after = compiled(["gfx942", "sm_80"], {name})
    assert before == same != after, "what is compiled again comes from the cache"
    assert made == [c for c in whole if c.name == name] and len(made) < len(whole)
"""


def test_chosen_kernels_are_compiled_whatever_a_cache_has(tmp_path):
    script, cache = tmp_path / "chosen.py", tmp_path / "cache"
    script.write_text(CHOSEN)
    done = python(script, cache, TRITON_CACHE_DIR=str(cache))
    assert done.returncode == 0, done.stderr
