"""What is counted on 64-bit Arm: kinds of instructions, answers of llvm-mca, the latency model, the page."""

import json
import re
from pathlib import Path

import pytest

from bench.aarch64 import emulated, latency, llvm, loops, report, targets
from bench.aarch64.cores import Core
from bench.aarch64.instructions import Block, Counts, branch_offset, count, joined, kind_of, read_blocks

# As LLVM's assembler encodes them.
ENCODINGS = {
    "multiply_adds": {
        0x4E22CC20: "fmla v0.4s, v1.4s, v2.4s",
        0x4EE2CC20: "fmls v0.2d, v1.2d, v2.2d",
        0x4FA21820: "fmla v0.4s, v1.4s, v2.s[3]",
        0x0FA25023: "fmls v3.2s, v1.2s, v2.s[1]",
        0x4E420C20: "fmla v0.8h, v1.8h, v2.8h",
        0x0EC20C20: "fmls v0.4h, v1.4h, v2.4h",
        0x4F321820: "fmla v0.8h, v1.8h, v2.h[7]",
        0x4E22EC20: "fmlal v0.4s, v1.4h, v2.4h",
        0x6E22CC20: "fmlal2 v0.4s, v1.4h, v2.4h",
        0x4FB20820: "fmlal v0.4s, v1.4h, v2.h[7]",
        0x6FB28020: "fmlal2 v0.4s, v1.4h, v2.h[3]",
        0x4E829420: "sdot v0.4s, v1.16b, v2.16b",
        0x6FA2E820: "udot v0.4s, v1.16b, v2.4b[3]",
    },
    "other_vector": {
        0x4F829020: "fmul v0.4s, v1.4s, v2.s[0]",
        0x6E421C20: "fmul v0.8h, v1.8h, v2.8h",
        0x4E22D420: "fadd v0.4s, v1.4s, v2.4s",
        0x1F020C20: "fmadd s0, s1, s2, s3",
        0x4E032020: "tbl v0.16b, { v1.16b, v2.16b }, v3.16b",
        0x0E216820: "fcvtn v0.4h, v1.4s",
        0x4E140420: "dup v0.4s, v1.s[2]",
        0x0E628020: "smlal v0.4s, v1.4h, v2.4h",
    },
    "loads": {
        0x3DC00020: "ldr q0, [x1]",
        0x3CC10420: "ldr q0, [x1], #16",
        0xF8627820: "ldr x0, [x1, x2, lsl #3]",
        0xB9800420: "ldrsw x0, [x1, #4]",
        0x385FFC20: "ldrb w0, [x1, #-1]!",
        0xFC5F8020: "ldur d0, [x1, #-8]",
        0xAD410420: "ldp q0, q1, [x1, #32]",
        0xA8C17BFD: "ldp x29, x30, [sp], #16",
        0x69400440: "ldpsw x0, x1, [x2]",
        0x4CC22820: "ld1 { v0.4s, v1.4s, v2.4s, v3.4s }, [x1], x2",
        0x0D409020: "ld1 { v0.s }[1], [x1]",
        0x4D40C820: "ld1r { v0.4s }, [x1]",
        0x88DFFC20: "ldar w0, [x1]",
        0xC85F7C20: "ldxr x0, [x1]",
        0x58000200: "ldr x0, #64",
        0x9C000200: "ldr q0, #64",
        0x98000200: "ldrsw x0, #64",
        0xF8BFC020: "ldapr x0, [x1]",
        0xF8200041: "ldadd x0, x1, [x2]",
    },
    "stores": {
        0x3D800420: "str q0, [x1, #16]",
        0xF8008420: "str x0, [x1], #8",
        0x38226820: "strb w0, [x1, x2]",
        0xBC1FC020: "stur s0, [x1, #-4]",
        0xAD000420: "stp q0, q1, [x1]",
        0xA9BF7BFD: "stp x29, x30, [sp, #-16]!",
        0x6C000420: "stnp d0, d1, [x1]",
        0x4C9FA820: "st1 { v0.4s, v1.4s }, [x1], #32",
        0x0D005020: "st1 { v0.h }[2], [x1]",
        0x889FFC20: "stlr w0, [x1]",
    },
    "branches": {
        0x14000002: "b #8",
        0x54FFFFC1: "b.ne #-8",
        0xB4000040: "cbz x0, #8",
        0x371FFFC0: "tbnz w0, #3, #-8",
        0x94000002: "bl #8",
        0xD61F0000: "br x0",
        0xD63F0000: "blr x0",
        0xD65F03C0: "ret",
        0xD4000001: "svc #0",
    },
    "other": {
        0xF9800020: "prfm pldl1keep, [x1]",
        0xF8A26820: "prfm pldl1keep, [x1, x2]",
        0xF89F8020: "prfum pldl1keep, [x1, #-8]",
        0xD8000200: "prfm pldl1keep, #64",
        0xD503201F: "nop",
        0xD53B4420: "mrs x0, FPSR",
        0x8B020020: "add x0, x1, x2",
        0xF1000529: "subs x9, x9, #1",
    },
}
FMLA, LDR, STR, ADD = 0x4F821020, 0x3DC00020, 0x3D800420, 0x8B020020


def back(instructions):
    """b.ne to so many instructions before it."""
    return 0x54000001 | (-instructions & (1 << 19) - 1) << 5


@pytest.mark.parametrize("kind", ENCODINGS)
def test_every_instruction_is_of_its_kind(kind):
    for word, text in ENCODINGS[kind].items():
        assert kind_of(word) == kind, text


def test_blocks_are_read_joined_and_counted(tmp_path):
    path = tmp_path / "blocks"
    path.write_text("a 1000 4f821020 3dc00020\n1 2000 8b020020\n6 1000 4f821020 3dc00020\n")
    blocks = read_blocks(path)
    assert blocks == [Block(16, 0x1000, (FMLA, LDR)), Block(1, 0x2000, (ADD,))]
    assert count(blocks) == Counts(multiply_adds=16, loads=16, other=1)
    assert count(blocks).total == 33


def test_blocks_cut_at_a_page_are_joined():
    head, loop, rest = (
        Block(2, 0xF80, (ADD,) * 32),
        Block(9, 0xFF8, (FMLA, LDR)),
        Block(15, 0x1000, (STR, back(3))),
    )
    whole = [Block(2, 0xF80, (*head.words, *rest.words)), Block(9, 0xFF8, (FMLA, LDR, STR, back(3)))]
    left = Block(4, 0x1000, rest.words)  # entered by branches
    found = joined([head, loop, rest])
    assert sorted(found, key=lambda block: block.address) == [*whole, left]
    assert count(found) == count([head, loop, rest])
    assert whole[1].is_loop
    # Cut twice; and what was executed more often than what follows it stays as it is.
    parts = [Block(3, 0, (ADD,)), Block(3, 4, (LDR,)), Block(3, 8, (STR, back(1)))]
    assert joined(parts) == [Block(3, 0, (ADD, LDR, STR, back(1)))]
    assert joined([Block(3, 0, (ADD,)), Block(2, 4, (back(1),))]) == [
        Block(2, 4, (back(1),)),
        Block(3, 0, (ADD,)),
    ]


def test_branches_go_where_their_bits_say():
    assert [branch_offset(w) for w in (0x14000002, 0x54FFFFC1, 0xB4000040, 0x371FFFC0)] == [8, -8, 8, -8]
    assert [branch_offset(w) for w in (0x94000002, 0xD65F03C0, FMLA)] == [None, None, None]
    assert Block(1, 0, (FMLA, LDR, back(2))).is_loop
    assert not Block(1, 0, (FMLA, LDR, back(1))).is_loop


def test_programs_make_the_marks_that_the_plugin_knows():
    plugin = Path(emulated.__file__).with_name("executed_blocks.c").read_text(encoding="utf-8")
    known = {name: int(value, 0) for name, value in re.findall(r"\bk(Mark|Begin|End) = (\w+)", plugin)}
    assert known == {"Mark": emulated.MARK, "Begin": emulated.BEGIN, "End": emulated.END}


def test_the_innermost_loop_with_most_multiply_adds_is_found():
    small = (FMLA, back(1))
    large = (FMLA, FMLA, LDR, back(3))
    words = (ADD, *small, *large, back(7), FMLA, FMLA, FMLA)  # both in a loop, and what is in none
    assert list(loops.innermost(words)) == [small, large]
    name = "void effv2::neon_fp32::(anonymous namespace)::run_tiles<4, float>(effv2::neon_fp32::Rows const&)"
    functions = [llvm.Function(name, 0, words), llvm.Function("other", 0, (*large[:1], *large, back(5)))]
    assert loops.find(functions, "run_tiles<").words == large
    assert loops.find(functions, "run_tiles<").function.startswith("run_tiles<4, float>(")
    with pytest.raises(SystemExit, match="softmax"):
        loops.find(functions, "softmax")
    with pytest.raises(SystemExit, match="no loop"):
        loops.find([llvm.Function(name, 0, (FMLA, LDR))], "run_tiles<")


def test_two_branches_to_one_place_are_one_loop():
    words = (FMLA, back(1), FMLA, LDR, back(4))
    assert list(loops.innermost(words)) == [words]


def test_answers_of_the_tools_are_read():
    region = '{"Name": "%s", "SummaryView": {"Iterations": 100, "TotalCycles": %d, "Instructions": 9300}}'
    text = f'{{"CodeRegions": [{region % (0, 3815)}, {region % (1, 42)}], "TargetInfo": {{}}}}'
    assert llvm.parse_cycles(text) == {"0": 38.15, "1": 0.42}
    text = """
a.o:	file format elf64-littleaarch64

Disassembly of section .text:

0000000000000000 <void effv2::f<1>(float const*)>:
       0: 4f821020     	fmla	v0.4s, v1.4s, v2.s[0]
       4: 54ffffe1     	b.ne	0x0 <void effv2::f<1>(float const*)>

0000000000000008 <g>:
       8: d65f03c0     	ret
"""
    assert llvm.parse_functions(text) == [
        llvm.Function("void effv2::f<1>(float const*)", 0, (FMLA, 0x54FFFFE1)),
        llvm.Function("g", 8, (0xD65F03C0,)),
    ]


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("str\tq0, [x1], #16", ("str\tq0, [x1]", "add x1, x1, #16")),
        ("stp\tx29, x30, [sp, #-96]!", ("sub sp, sp, #96", "stp\tx29, x30, [sp]")),
        ("st1\t{ v1.4s }, [x2], x6", ("st1\t{ v1.4s }, [x2]", "add x2, x2, x6")),
        ("str\tq0, [x1, #16]", ("str\tq0, [x1, #16]",)),
        ("str\tx0, [x1, x2]", ("str\tx0, [x1, x2]",)),
        ("ldr\tq0, [x1], #16", ("ldr\tq0, [x1], #16",)),
    ],
)
def test_a_store_that_moves_its_address_is_two(line, parts):
    assert llvm.split_update(line) == parts


def test_latency_by_hand(monkeypatch):
    core = Core("A", "model", 1, gigahertz=2.0, width=4, multiply_adds=2, gigabytes=10.0)
    assert latency.cycles_of(core, instructions=8, multiply_adds=2, modelled=5.0) == 5.0
    assert latency.cycles_of(core, instructions=40, multiply_adds=2, modelled=5.0) == 10.0  # decoding
    assert latency.cycles_of(core, instructions=40, multiply_adds=24, modelled=5.0) == 12.0  # multiplying
    # 1000 rounds of 3.5 cycles; the other block, 5 of 4005 instructions, is beyond 99 %: a cycle for each.
    monkeypatch.setattr(llvm, "cycles", lambda codes, model, rounds: [3.5 for _ in codes])
    blocks = [Block(1000, 0, (FMLA, LDR, ADD, back(3))), Block(1, 64, (ADD,) * 5)]
    assert latency.cycles(blocks, core) == 3500 + 5
    # 6e6 cycles at 2 GHz, and 10 MB at 10 GB/s
    assert latency.alone(core, 6e6, 10e6) == pytest.approx(3e-3 + 1e-3)
    # Two at 2.8 and two at 2.25 GHz, a cycle each for so many: 10.1e9 / 2.02e7 = 500 images a second.
    cycles = {"Cortex-X1": 2.02e7, "Cortex-A76": 2.02e7}
    seconds = 2e-3 * (1 + latency.DONE_TWICE) + latency.MEETINGS * latency.SECONDS_OF_MEETING + 1e-3
    assert latency.together(cycles, 20e6) == pytest.approx(seconds)


@pytest.fixture
def recorded():
    return json.loads(report.RECORDED.read_text(encoding="utf-8"))


def test_the_pages_have_what_is_recorded(recorded):
    tables = [(report.PAGE, name, table) for name, table in report.TABLES.items()]
    for page, name, table in [*tables, (report.README, report.SUMMARY, report.summary_table)]:
        begin, end = report.marks(name)
        text = page.read_text(encoding="utf-8")
        assert text.partition(f"{begin}\n")[2].partition(f"\n{end}")[0] == table(recorded), (
            f"{name}: run make bench-aarch64 ARGS=--record"
        )


def test_what_is_recorded_is_right_and_whole(recorded):
    found = {(r["network"], r["engine"], r["format"]) for r in (*recorded["counts"], *recorded["absent"])}
    assert found == {
        (network, engine, fmt)
        for network in recorded["weights"]
        for engine in report.ENGINES
        for fmt in targets.FORMATS
    }
    assert all(0 < row["error"] < 2e-2 for row in recorded["counts"])


def _change(recorded, fmt, **changed):
    """What is recorded, with other counts of this package's S0."""
    result = json.loads(json.dumps(recorded))
    targets.row_of(result, "effv2", fmt, targets.S0)["instructions"].update(changed)
    return result


def test_more_instructions_than_recorded_are_refused(recorded):
    total = targets.counts_of(recorded, "effv2", "fp32", targets.S0).total
    branches = targets.counts_of(recorded, "effv2", "fp32", targets.S0).branches
    assert targets.over_budget(recorded, recorded) == []
    assert targets.over_budget(_change(recorded, "fp32", branches=branches + total // 101), recorded) == []
    (message,) = targets.over_budget(_change(recorded, "fp32", branches=branches + total // 99), recorded)
    assert "S0 in fp32" in message
    assert f"{total:,} are recorded" in message


def test_targets_are_met_missed_or_not_counted(recorded):
    name = "S0 fp32: multiply-adds among all instructions"

    def verdict(result):
        return next(target.met for target in targets.judged(result) if target.what == name)

    assert verdict(_change(recorded, "fp32", multiply_adds=10**9)) is True
    assert verdict(_change(recorded, "fp32", multiply_adds=1)) is False
    nothing = {**recorded, "counts": [], "loops": [], "absent": []}
    assert all(target.met is None and target.note == "not counted" for target in targets.judged(nothing))
    assert len(targets.judged(nothing)) == 14
