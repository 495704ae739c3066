"""The record of what nvcc makes of the CUDA kernels, and the script that holds them to it."""

import importlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1av' for 'sm_80'
ptxas info    : Function properties for _Z1av
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 68 registers, used 1 barriers, 576 bytes cmem[0]
ptxas info    : Compiling entry function '_Z1bv' for 'sm_80'
ptxas info    : Function properties for _Z1bv
    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 16 bytes cumulative stack size, 128 bytes smem
"""

LISTING = """	.section	.text._Z1av,"ax",@progbits
.text._Z1av:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDSM.16.M88.4 R4, [R8] ;
        /*0020*/              @!UP0 UMOV UR4, 0x400 ;
.L_x_1:
        /*0030*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0040*/                   LDGSTS.E.BYPASS.128 [R9], desc[UR8][R2.64] ;
        /*0050*/                   BRA `(.L_x_1) ;
        /*0060*/                   NOP;
.text._Z1bv:
        /*0000*/                   EXIT ;
"""


@pytest.fixture(scope="module")
def compiled():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        yield importlib.import_module("compiled_kernels")


@pytest.fixture
def record(compiled):
    return compiled.read_record()


def test_the_record_is_of_what_is_compared_and_has_no_faults(compiled, record):
    compiler, kernels = record
    assert set(kernels) == set(compiled.ARCHITECTURES)
    assert len({tuple(sorted(names)) for names in kernels.values()}) == 1
    assert compiled.faults(kernels) == []
    assert compiled.as_json(compiler, kernels) == compiled.RECORD.read_text(encoding="utf-8")


def test_the_page_is_that_of_the_record(compiled, record):
    assert compiled.page(*record) == compiled.PAGE.read_text(encoding="utf-8")


def test_resources_are_those_that_the_assembler_names(compiled):
    assert compiled.resources_in(PTXAS) == {
        "_Z1av": {"registers": 68, "stack": 0, "spilled": 0, "shared": 0},
        "_Z1bv": {"registers": 255, "stack": 16, "spilled": 32, "shared": 128},
    }


def test_instructions_are_counted_without_padding(compiled):
    assert compiled.instructions(LISTING) == {
        "_Z1av": {"instructions": 6, "mma": 1, "matrices": 1, "copies": 1},
        "_Z1bv": {"instructions": 1, "mma": 0, "matrices": 0, "copies": 0},
    }


def test_names_are_those_of_the_templates(compiled):
    if not shutil.which("c++filt"):
        pytest.skip("there is no c++filt")
    name = "_ZN5effv24cuda12_GLOBAL__N_16singleINS0_7FfnTileI6__halfLNS0_7FfnPartE1ELi8ELi64EEEEEv"
    name += "NT_10ParametersE"
    assert compiled.readable([name, "_Z5plainPc"]) == ["FfnTile<Half, (FfnPart)1, 8, 64>", "plain"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stack": 16}, "has a stack of 16 bytes"),
        ({"spilled": 8}, "spills registers: 8 bytes are stored and loaded"),
        ({"shared": 128}, "has 128 bytes of shared memory beside what launches give it"),
        ({"mma": 0}, "has no HMMA"),
        ({"matrices": 0}, "has no LDSM"),
        ({"copies": 0}, "has no LDGSTS"),
    ],
)
def test_faults_are_named(compiled, record, change, said):
    _, kernels = record
    name = next(name for name in kernels["80"] if name.startswith("ProductTile"))
    kernels["80"][name] = replace(kernels["80"][name], **change)
    assert compiled.faults(kernels) == [f"sm_80: {name} {said}"]


def test_changes_are_named(compiled, record):
    _, kernels = record
    first, second, *_ = sorted(kernels["90"])
    made = dict(kernels["90"])
    made[first] = replace(made[first], registers=255)
    made["NewTile<Half>"] = made.pop(second)
    assert compiled.differences(kernels, {"90": kernels["90"]}) == []
    assert compiled.differences(kernels, {"90": made}) == [
        f"sm_90: {first}: registers {kernels['90'][first].registers} -> 255",
        *sorted([f"sm_90: {second} is not compiled", "sm_90: NewTile<Half> is not recorded"]),
        "if this was meant: make cuda-table",
    ]


def test_barriers_that_a_proof_of_races_does_without_are_there(tmp_path):
    """Nothing is proved by a fault that was not planted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        races = importlib.import_module("verify_races")
    for number, fault in enumerate(races.FAULTS):
        folder = tmp_path / str(number)
        races.plant(fault, folder)
        before = (ROOT / "csrc" / "cuda" / fault.header).read_text(encoding="utf-8")
        after = (folder / "cuda" / fault.header).read_text(encoding="utf-8")
        assert len(before) - len(after) == len("sync();")
