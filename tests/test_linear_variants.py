"""The products that may replace the plain one on Hopper: by contract, in any order of events."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
from hopper_machine import Descriptor, Machine, Pointer
from outside import python
from test_attention_steps import script

from twofold.core.verify.compiling.machine_code import LINE, disassembler, loops
from twofold.core.verify.contract import judge
from twofold.core.verify.contracts.linear import Case
from twofold.core.verify.foreign import subjects
from twofold.core.verify.strict import strict_interpreter
from twofold.kernels.device import architecture
from twofold.kernels.linear_tiles import Tile
from twofold.reference import activation

pytest.importorskip("twofold.kernels.attention_hopper_kernel")
for name in ("harness", "linear_hopper_kernel", "linear_variants"):
    script(name)
kernel, variants = script("linear_hopper_kernel"), script("linear_variants")

CODE = Path(__file__).parent / "linear_hopper_code.py"
ROWS, BLOCK_N, BLOCK_K = 4, 8, 2
SIZES = [(1, 1, 1, 1), (24, 32, 2, 1), (8, 16, 4, 1), (19, 21, 7, 2), (33, 9, 3, 3), (12, 40, 9, 4)]
SMALL = Tile(32, 32, 16, 8, 4, 2)
CASES = [
    Case("bfloat16", rows=M, features_in=K, features_out=N, activation=kind, bias=bias)
    for M, K, N in ((70, 40, 72), (32, 16, 32), (5, 72, 40))
    for kind, bias in ((None, True), ("gelu", True), ("gelu", False), (None, False))
]


def held(make, case):
    """Judge a layer whose products are made this way."""
    subject = subjects.subject(variants.Layer(make), "linear")
    found = judge(subject.contract, subject.side, case)
    assert [f.fault for f in found if f.fault] == []
    assert subject.ever >= {"out", "dx", "dweight"}


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_descriptors_hold_the_contract(triton, case, persistent):
    """All three products, in several tiles, with edges and without."""
    with strict_interpreter():
        held(lambda x: variants.with_descriptors(x, SMALL, persistent), case)


@pytest.mark.parametrize("how", variants.VARIANTS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_hoppers_own_holds_the_contract(triton, case, how):
    """Only on a Hopper device."""
    if triton.device != "cuda" or architecture() != "sm_90":
        pytest.skip("it runs on Hopper only")
    held(lambda x: variants.on_hopper(x, how), case)


def simulate(
    M, N, K, programs, *, shared, stages, turned, gelu, parts, seed, kernel=kernel
):  # fmt: skip
    """Run Hopper's kernel on the machine; return what it wrote and the right result."""
    rng = np.random.default_rng(seed)
    a, b, bias = rng.normal(size=(M, K)), rng.normal(size=(K, N)), rng.normal(size=N)
    c, z = np.full((M, N), np.nan), np.full((M, N), np.nan)
    tiles = -(-M // (ROWS * (1 + shared))) * -(-N // BLOCK_N)
    staged = (ROWS, BLOCK_N // parts)
    Machine(kernel, "product_kernel", seed).run(
        min(programs, tiles),
        Descriptor(a.T.copy(), (BLOCK_K, ROWS)) if turned[0] else Descriptor(a, (ROWS, BLOCK_K)),
        Descriptor(b.T.copy(), (BLOCK_N, BLOCK_K)) if turned[1]
        else Descriptor(b, (BLOCK_K, BLOCK_N)),
        Pointer(bias), Descriptor(c, staged), Descriptor(z, staged), M, N, K, tiles,
        BLOCK_N=BLOCK_N, BLOCK_K=BLOCK_K, STAGES=stages, SHARED=shared, A_TURNED=turned[0],
        B_TURNED=turned[1], ROWS=ROWS, GROUP_M=2, HAS_BIAS=gelu, GELU=gelu, PARTS=parts,
    )  # fmt: skip
    want = a @ b + (bias if gelu else 0.0)
    return (c, z), (activation.forward(want, "gelu")[0] if gelu else want, want if gelu else z)


VARIETIES = [
    dict(shared=shared, stages=stages, turned=turned, gelu=gelu, parts=parts)
    for shared in (False, True)
    for stages, turned, gelu, parts in (
        (2, (False, True), True, 4), (2, (False, False), False, 2), (3, (True, False), False, 1),
        (4, (False, True), True, 1),
    )
]  # fmt: skip


@pytest.mark.parametrize("variety", VARIETIES, ids=str)
def test_any_order_gives_the_product(variety):
    """Nothing deadlocks, and nothing is read or overwritten too early."""
    for seed, size in enumerate(SIZES):
        found, want = simulate(*size, **variety, seed=seed)
        for x, y in zip(found, want, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "line, planted",
    [
        ("mbarrier.wait(empty.index(slot), (step // STAGES & 1) ^ 1)", "pass"),
        ("mbarrier.wait(full.index(slot), step // STAGES & 1)", "pass"),
        ("pred=i > 0", "pred=True"),
        ("warpgroup_mma_wait(1, deps=[acc])", "warpgroup_mma_wait(2, deps=[acc])"),
        ("step += (EVERY - 1) * steps", "step += 0"),
        ("tma.store_wait(0)  # of the previous tile", "pass"),
        ("            tma.store_wait(0)\n        write", "            pass\n        write"),
        ("FIRST + PARTS // 2", "FIRST"),
        ("mbarrier.wait(turns.index(C), (trip & 1) ^ (1 - C))", "pass"),
        ("mbarrier.arrive(turns.index(1 - C))", "pass"),
    ],
)
def test_faults_of_the_protocol_are_found(line, planted, tmp_path):
    """A planted fault deadlocks or writes a wrong result, in some order."""
    source = Path(kernel.__file__).read_text()
    assert source.count(line) == 1
    (tmp_path / "planted.py").write_text(source.replace(line, planted))
    spec = importlib.util.spec_from_file_location("planted", tmp_path / "planted.py")
    faulty = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(faulty)
    with pytest.raises(AssertionError):
        for seed, variety in itertools.product(range(4), VARIETIES):
            for size in SIZES:
                found, want = simulate(*size, **variety, seed=seed, kernel=faulty)
                for x, y in zip(found, want, strict=True):
                    np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)


@pytest.mark.skipif(disassembler() is None, reason="this Triton has no nvdisasm")
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("how", range(len(variants.VARIANTS)))
def test_products_follow_each_other(how, gelu):
    """The loop waits for the product before the last, and does not spill."""
    done = python(CODE, how, *(["gelu"] if gelu else []))
    assert done.returncode == 0, done.stderr
    code = [line[1] for x in done.stdout.splitlines() if (line := LINE.match(x))]
    found = [
        x for x in loops(done.stdout) if x.instructions["HGMMA"] and not x.instructions["EXIT"]
    ]
    assert len(found) >= 2, "one of each group"
    assert not any(x.instructions["LDL"] + x.instructions["STL"] for x in found)
    waits = [x for x in code if x.startswith("WARPGROUP.DEPBAR")]
    assert sorted(x[-3:] for x in waits) == ["0x0"] * 2 + ["0x1"] * 2
