"""The plugin counts a program of a few instructions exactly; needs what `make bench-aarch64` unpacks."""

import struct
import subprocess

from bench.aarch64.counting import CPU, PLUGIN, ROOT
from bench.aarch64.instructions import Counts, count, read_blocks

ROUNDS = 1000
# mov x8, #141 (getpriority); mov x0, #MARK; so that mov x1 and svc make a mark
MARK = (0xD28011A8, 0xD28E4D60, 0xF2ADAC20)
BEGIN, END = (*MARK, 0xD2800021, 0xD4000001), (*MARK, 0xD2800041, 0xD4000001)
PROGRAM = (
    *BEGIN,
    0xD2807D09,  # mov x9, #1000
    0x4F821020,  # fmla v0.4s, v1.4s, v2.s[0]
    0x3DC003E3,  # ldr q3, [sp]
    0x3C9F03E3,  # str q3, [sp, #-16]
    0xF98003E0,  # prfm pldl1keep, [sp]
    0xF1000529,  # subs x9, x9, #1
    0x54FFFF61,  # b.ne, to the fmla
    *END,
    0xD2800000,  # mov x0, #0
    0xD2800BA8,  # mov x8, #93 (exit)
    0xD4000001,  # svc #0
)


def executable(words):
    """A static program for 64-bit Arm, loaded as a whole."""
    start, header = 0x400000, 64 + 56
    code = b"".join(word.to_bytes(4, "little") for word in words)
    size = header + len(code)
    identity = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    elf = struct.pack("<HHIQQQIHHHHHH", 2, 183, 1, start + header, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, start, start, size, size, 0x1000)
    return identity + elf + segment + code


def test_every_instruction_between_the_marks_is_counted(tmp_path):
    program, blocks = tmp_path / "program", tmp_path / "blocks"
    program.write_bytes(executable(PROGRAM))
    program.chmod(0o755)
    emulator = [ROOT / "scripts/on_aarch64.sh", CPU, "-plugin", f"{PLUGIN},out={blocks}"]
    done = subprocess.run([*emulator, program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    once = 1 + len(END) - 1  # mov x9, and END but for its svc
    each = {"multiply_adds": ROUNDS, "loads": ROUNDS, "stores": ROUNDS, "branches": ROUNDS + 1}
    found = read_blocks(blocks)
    assert count(found) == Counts(**each, other=2 * ROUNDS + once)
    assert found[0].is_loop
    assert found[0].executions == ROUNDS - 1  # the first round comes with what is before it


def test_a_plugin_without_a_file_to_write_refuses(tmp_path):
    program = tmp_path / "program"
    program.write_bytes(executable(PROGRAM))
    program.chmod(0o755)
    emulator = [ROOT / "scripts/on_aarch64.sh", CPU, "-plugin", str(PLUGIN)]
    done = subprocess.run([*emulator, program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "out=FILE" in done.stderr
