"""Counting in machine code: a short listing, what follows from it, and a real kernel."""

import json
import re
from pathlib import Path

import pytest
from outside import python

from twofold.core.verify.compiling import machine_code as machine_code

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "attention_ceilings.py"
# A loop over tiles around one over features, followed by one that multiplies nothing.
LISTING = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64] ;
.L_x_1:
        /*0020*/                   HGMMA.64x32x16.F32.BF16 R88, gdesc[UR20], R88 ;
        /*0030*/                   HGMMA.64x128x16.F32.BF16 R24, R108, gdesc[UR16].tnspB, R24, gsb0 ;
        /*0040*/                   FMUL R4, R4, R5 ;
        /*0050*/              @!P2 FMUL R4, R4, R5 ;
        /*0060*/                   MUFU.EX2 R4, R4 ;
        /*0070*/                   MUFU.RCP R4, R4 ;
        /*0080*/                   LDSM.16.M88.4 R8, [R9] ;
        /*0090*/                   LDS.128 R8, [R9] ;
        /*00a0*/              @!P0 BRA `(.L_x_1) ;
        /*00b0*/               @P0 BRA `(.L_x_0) ;
.L_x_2:
        /*00c0*/                   FADD R4, R4, R5 ;
        /*00d0*/               @P0 BRA `(.L_x_2) ;
        /*00e0*/               @P0 BRA `(.L_x_3) ;
        /*00f0*/                   HMMA.16816.F32.BF16 R76, R84, R92.reuse, RZ ;
.L_x_3:
        /*0100*/                   EXIT ;
"""  # fmt: skip # noqa: E501
LABELLED = """
        /*0000*/                   STL [R1], R4 ;
.L_x_0:
        /*0010*/                   {} ;
        /*0030*/               @P0 BRA `(.L_x_0) ;
"""


def test_the_innermost_loop_that_multiplies_is_counted():
    (loop,) = machine_code.loops(LISTING)
    assert loop.instructions == {
        "HGMMA": 2, "FMUL": 2, "MUFU": 2, "LDSM": 1, "LDS": 1, "BRA": 1
    }  # fmt: skip
    assert loop.exponentials == 1 and loop.copied == 0 and loop.synchronous == 0
    assert loop.operations * 128 == 2 * 64 * 16 * (32 + 128)
    # The first product reads both operands, the second has one in registers.
    products = (64 + 32) * 16 * 2 + 128 * 16 * 2
    assert loop.shared == pytest.approx(products / 128 + 512 / 32 + 16)


def test_loops_that_begin_alike_and_those_of_warps_are_found():
    alike = LISTING.replace("`(.L_x_0)", "`(.L_x_1)")
    assert machine_code.loops(alike) == machine_code.loops(LISTING)
    warps = re.sub(r"HGMMA\.[^;]+", "HMMA.16816.F32.BF16 R76, R84, R92, RZ ", LISTING)
    (loop,) = machine_code.loops(warps)
    assert loop.instructions["HMMA"] == 2
    no_loop = LABELLED.format("HMMA.16816.F32.BF16 R76, R84, R92, RZ ;\n /*0020*/ EXIT")
    assert machine_code.spills_in_loops(no_loop)  # code after the end, which branches back
    assert not machine_code.spills_in_loops(no_loop.replace("EXIT", "MUFU.RCP R4, R4"))


@pytest.mark.parametrize(
    ("line", "inside"),
    [
        (None, False),  # nothing spills at all
        ("MUFU.RCP R4, R4", True),
        ("MOV R1, c[0x0][0x28]", False),
        ("LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]", False),  # in the loop around it
        ("FADD R4, R4, R5", False),
    ],
)
def test_spills_count_where_matrices_are_multiplied(line, inside):
    for spill in ("STL [R1], R4", "LDL R4, [R1]"):
        listing = LISTING if line is None else LISTING.replace(line, spill)
        assert listing.count(spill) == (line is not None)
        assert machine_code.spills_in_loops(listing) == inside
    assert machine_code.spills_in_loops(LISTING.partition(".L_x_0:")[0]), "it has no such loop"


def test_products_of_a_warp_and_copies_are_counted():
    found = machine_code.count(
        ["HMMA.16816.F32.BF16 R76, R84, R92.reuse, RZ", "LDGSTS.E [R1], desc[UR4][R2.64]",
         "LDG.E.128 R4, desc[UR4][R2.64]", "STSM.16.M88.2 [R1], R2", "STS.64 [R1], R2"]
    )  # fmt: skip
    assert found.operations * 32 == found.synchronous * 32 == 2 * 16 * 8 * 16
    assert found.copied == 4 + 16
    assert found.shared == 4 + 2 * 128 / 32 + 8
    assert machine_code.count(["LDSM.16.M88 R8, [R9]"]).shared == 128 / 32
    assert found.clocks(32)["matrix"] == pytest.approx(2 * 16 * 8 * 16 / 0.629 / 4096)


def test_units_are_taken_as_long_as_their_rates_say():
    loop = machine_code.count(
        ["MUFU.EX2 R4, R4"] * 2
        + ["FMUL R4, R4, R5"] * 4
        + ["EXIT"]
        + ["IMAD R4, R4, R5, R6"] * 3
        + ["SHFL.BFLY R4, R5, 0x1, 0x1f"]
    )
    clocks = loop.clocks(256)
    assert clocks == {
        "matrix": 0, "special": 256 * 2 / 16, "shuffle": 256 / 32, "float": 256 * 4 / 128,
        "other": 256 * 3 / 64, "shared": 0, "issue": 256 * 11 / 128,
    }  # fmt: skip


def test_ceilings_follow_from_clocks():
    clocks = {"matrix": 50.0, "shared": 100.0, "special": 60.0, "issue": 25.0}
    found = machine_code.ceiling(clocks, 50 * 4096.0)
    assert found.together == pytest.approx(0.5) and found.limit == "shared"
    assert found.apart == pytest.approx(50 / 160)


def test_a_real_kernel_makes_the_products_that_it_should(tmp_path):
    """Compiled without a device: forward makes each product once and one exponential per score."""
    if machine_code.disassembler() is None:
        pytest.skip("this Triton has come without nvdisasm")
    done = python(SCRIPT, "--quick", "--json", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    forward = next(r for r in rows if r["kernel"] == "forward_kernel")
    assert forward["tiles"] == 1.0 and forward["products_made"] == 1.0
    assert 1.0 <= forward["exponentials_made"] < 1.1  # one more for each row rescales
    assert all(0.0 < r["apart"] < r["together"] <= 1.0 for r in rows)
