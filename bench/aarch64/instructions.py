"""Instructions of 64-bit Arm: what was executed, by blocks, and of what kind each is, by its bits.

The encodings are those of the Arm Architecture Reference Manual, section C4.1.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

# (mask, value): a multiply and an add or subtract in each lane of a vector, rounded once, or a dot product.
_MULTIPLY_ADDS = (
    (0xBF20FC00, 0x0E20CC00),  # fmla, fmls of vectors of float and double
    (0xBF60FC00, 0x0E400C00),  # of halves
    (0xBF80B400, 0x0F801000),  # fmla, fmls by element, of float and double
    (0xBFC0B400, 0x0F001000),  # of halves
    (0xBF60FC00, 0x0E20EC00),  # fmlal, fmlsl: products of halves onto floats
    (0xBF60FC00, 0x2E20CC00),  # fmlal2, fmlsl2
    (0xBFC0B400, 0x0F800000),  # fmlal, fmlsl by element
    (0xBFC0B400, 0x2F808000),  # fmlal2, fmlsl2 by element
    (0x9FE0FC00, 0x0E809400),  # sdot, udot
    (0x9FC0F400, 0x0F80E000),  # by element
)


@cache
def kind_of(word: int) -> str:
    """The field of ``Counts`` that an instruction belongs to."""
    if (word & 0x0E000000) == 0x0E000000:
        multiply_add = any((word & mask) == value for mask, value in _MULTIPLY_ADDS)
        return "multiply_adds" if multiply_add else "other_vector"
    if (word & 0x0A000000) == 0x08000000:
        return _moved(word)
    if (word & 0x1C000000) == 0x14000000:
        return "other" if (word & 0xFF000000) == 0xD5000000 else "branches"  # hints, barriers, registers
    return "other"


def _moved(word: int) -> str:
    """Which of loads, stores and others an instruction of the group "loads and stores" is."""
    vector = bool(word & 1 << 26)
    if (word & 0x3B000000) == 0x18000000:  # by an address beside the program; its last kind is prfm
        return "other" if word >> 30 == 3 and not vector else "loads"
    if (word & 0x3A000000) == 0x38000000 and not vector:  # one general register
        operation = word >> 22 & 3
        atomic = not word & 1 << 24 and word & 1 << 21 and not word & 3 << 10
        if operation == 2 and word >> 30 == 3 and not atomic:
            return "other"  # prfm
        return "loads" if operation or atomic else "stores"
    return "loads" if word & 1 << 22 else "stores"  # pairs, vectors, structures, exclusive and ordered ones


@dataclass(frozen=True)
class Block:
    """Instructions that ran one behind the other, from the first to the last, so many times."""

    executions: int
    address: int
    words: tuple[int, ...]

    @property
    def weight(self) -> int:
        """Instructions executed."""
        return self.executions * len(self.words)

    @property
    def is_loop(self) -> bool:
        """Whether it ends with a branch to its own beginning."""
        return bool(self.words) and branch_offset(self.words[-1]) == -4 * (len(self.words) - 1)

    @property
    def multiply_adds(self) -> int:
        return sum(kind_of(word) == "multiply_adds" for word in self.words)


def read_blocks(path: Path) -> list[Block]:
    """What ``executed_blocks.c`` wrote, those with the most instructions executed first."""
    found: Counter[tuple[int, tuple[int, ...]]] = Counter()
    for line in path.read_text(encoding="ascii").splitlines():
        executions, address, *words = (int(field, 16) for field in line.split())
        found[address, tuple(words)] += executions
    blocks = [Block(executions, address, words) for (address, words), executions in found.items()]
    return sorted(joined(blocks), key=lambda block: (-block.weight, block.address))


def joined(blocks: list[Block]) -> list[Block]:
    """Blocks that go on without a branch, with what follows: QEMU cuts them where a page of memory ends."""
    done: list[Block] = []
    ends = defaultdict(list)  # blocks that go on, by the address at which they do
    for block in blocks:
        if block.words and kind_of(block.words[-1]) != "branches":
            ends[block.address + 4 * len(block.words)].append(block)
        else:
            done.append(block)
    # From the last address to the first: what follows a block is whole before the block is.
    for address, before in sorted(ends.items(), reverse=True):
        after = [block for block in done if block.address == address]
        executions = sum(block.executions for block in before)
        left = after[0].executions - executions if len(after) == 1 else -1
        if left < 0:  # ended by an interrupt, or translated more than once
            done += before
            continue
        (rest,) = after
        done.remove(rest)
        done += [replace(block, words=block.words + rest.words) for block in before]
        done += [replace(rest, executions=left)] * (left > 0)
    return done


@dataclass(frozen=True)
class Counts:
    """Instructions executed, of all kinds; a load or store of several registers is one."""

    multiply_adds: int = 0  # of vectors
    other_vector: int = 0  # and of scalar floats
    loads: int = 0
    stores: int = 0
    branches: int = 0
    other: int = 0  # of addresses and counters; prefetches

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def count(blocks: Iterable[Block]) -> Counts:
    found: Counter[str] = Counter()
    for block in blocks:
        for word in block.words:
            found[kind_of(word)] += block.executions
    return Counts(**found)


def branch_offset(word: int) -> int | None:
    """Bytes from a branch to where it may go; None for other instructions, calls, and computed targets."""
    if (word & 0xFC000000) == 0x14000000:  # b
        return _signed(word, 0, 26)
    if (word & 0xFF000000) == 0x54000000 or (word & 0x7E000000) == 0x34000000:  # b.<condition>, cbz, cbnz
        return _signed(word, 5, 19)
    if (word & 0x7E000000) == 0x36000000:  # tbz, tbnz
        return _signed(word, 5, 14)
    return None


def leaves(word: int) -> bool:
    """Whether it goes to another function or returns: bl, blr, br, ret; or to the system."""
    return (
        (word & 0xFC000000) == 0x94000000
        or (word & 0xFE000000) == 0xD6000000
        or (word & 0xFF000000) == 0xD4000000
    )


def _signed(word: int, low: int, bits: int) -> int:
    value = word >> low & (1 << bits) - 1
    return 4 * (value - (1 << bits) if value >> bits - 1 else value)
