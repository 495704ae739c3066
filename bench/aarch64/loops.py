"""The inner loops of the compiled engine, and how much they use of multiply-add units by llvm-mca's models.

Each is found by what it is: of the innermost loops of the functions of a name, the one with the most
multiply-adds. That it is also in the wheel is checked by its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.aarch64 import llvm
from bench.aarch64.cores import CORES
from bench.aarch64.instructions import branch_offset, kind_of

# What it does: (object file, what the name of its function begins with behind the namespace)
LOOPS = {
    "product": ("tiles/gemm.cpp.o", "run_tiles<"),
    "depthwise rows": ("blocks/ffn.cpp.o", "Depthwise::run3x3<1, false"),
    "GELU": ("blocks/ffn.cpp.o", "gelu<false"),
    "softmax": ("blocks/attention.cpp.o", "Attention::attend("),
}
ROUNDS = 1000  # after which filling the pipeline counts for nothing


@dataclass(frozen=True)
class Loop:
    function: str
    words: tuple[int, ...]

    @property
    def multiply_adds(self) -> int:
        return sum(kind_of(word) == "multiply_adds" for word in self.words)

    @property
    def vector(self) -> int:
        """All arithmetic of vectors, for which there are the same units."""
        return self.multiply_adds + sum(kind_of(word) == "other_vector" for word in self.words)


def innermost(words: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The loops of a function that hold no other, from where branches go back to, to the last such branch."""
    ends: dict[int, int] = {}
    for place, word in enumerate(words):
        offset = branch_offset(word)
        if offset is not None and offset <= 0 <= place + offset // 4:
            ends[place + offset // 4] = place
    for begin, end in ends.items():
        if not any(begin < other <= end for other in ends):
            yield tuple(words[begin : end + 1])


def plain_name(function: str) -> str:
    """ "run_tiles<4, 5, float, float>(Rows const&)" of a demangled name with its type and namespaces."""
    _, _, name = function.partition("effv2::")
    name = name.partition("::")[2]  # the target
    return name.removeprefix("(anonymous namespace)::")


def find(functions: Sequence[llvm.Function], beginning: str) -> Loop:
    """The innermost loop with the most multiply-adds of the functions whose names begin so."""
    loops = [
        Loop(plain_name(function.name), words)
        for function in functions
        if plain_name(function.name).startswith(beginning)
        for words in innermost(function.words)
    ]
    best = max(loops, key=lambda loop: loop.multiply_adds, default=None)
    if best is None or best.multiply_adds == 0:
        raise SystemExit(f"no loop with multiply-adds was found in functions named {beginning}...")
    return best


def measure(objects: Path, module: Path, fmt: str) -> list[dict[str, object]]:
    """Every loop on every core: a row each. objects: of the target; module: of the wheel."""
    if not objects.is_dir():
        raise SystemExit(f"{objects} has no objects of the wheel: make wheel-aarch64, or give --objects")
    inside = module.read_bytes()
    found = {}
    for what, (file, beginning) in LOOPS.items():
        loop = find(llvm.functions(objects / file), beginning)
        if b"".join(word.to_bytes(4, "little") for word in loop.words) not in inside:
            raise SystemExit(
                f"the loop of {what} in {objects / file} is not that of {module}: build both again"
            )
        found[what] = loop
    rows: list[dict[str, object]] = []
    for core in CORES.values():
        peak = peak_of(core.model, fmt)
        modelled = llvm.cycles([loop.words for loop in found.values()], core.model, ROUNDS)
        rows += [
            {
                "loop": what,
                "function": loop.function.partition("(")[0],
                "format": fmt,
                "core": core.name,
                "model": core.model,
                "instructions": len(loop.words),
                "multiply_adds": loop.multiply_adds,
                "cycles": cycles,
                "share": loop.multiply_adds / cycles / peak,
                "vector_share": loop.vector / cycles / peak,
            }
            for (what, loop), cycles in zip(found.items(), modelled, strict=True)
        ]
    return rows


def peak_of(model: str, fmt: str) -> float:
    """Multiply-adds of whole vectors in a cycle, if nothing else is done and none waits for another."""
    # fmla v<i>.4s, v30.4s, v15.s[0], or its twin of halves, onto sums of their own; v15 is left out.
    base = {"fp32": 0x4F8F13C0, "fp16": 0x4F0F13C0}[fmt]
    code = [base + register for register in range(30) if register != 15]
    return len(code) * 2 / llvm.cycles([code * 2], model, ROUNDS)[0]
