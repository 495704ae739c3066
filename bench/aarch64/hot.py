"""Print what a network spends its instructions on, on 64-bit Arm: `make hot-aarch64 NETWORK=s0`.

python bench/aarch64/hot.py [--network s0] [--format fp32] [--engine effv2] [--blocks 10]

Blocks of instructions that QEMU translated, those with the most executed first: how much of all that is, how
often it ran, cycles of a round by llvm-mca's models of the cores, the function where one has the same
instructions, and the instructions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.aarch64 import counting, latency, llvm, networks, targets
from bench.aarch64.cores import CORES
from bench.aarch64.instructions import Block
from bench.aarch64.loops import plain_name
from bench.aarch64.measure import objects_option
from effv2_kernels.families import short, variant_named


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", default="s0", metavar="NAME", help="e.g. l or in full; default: s0")
    parser.add_argument("--format", default="fp32", choices=targets.FORMATS)
    parser.add_argument("--engine", default="effv2", choices=tuple(counting.PACKAGES))
    parser.add_argument("--blocks", type=int, default=10, metavar="N", help="default: 10")
    objects_option(parser)
    args = parser.parse_args()
    name = variant_named(args.network)
    run = counting.count(networks.write(counting.FOLDER / "networks", name), args.engine, args.format)
    if isinstance(run, str):
        raise SystemExit(run)
    total = sum(block.weight for block in run.blocks)
    print(f"{short(name)} {args.format}, {args.engine}: {total:,} instructions")
    blocks = run.blocks[: args.blocks]
    models = [core.model for core in CORES.values()]
    cycles = [llvm.cycles([block.words for block in blocks], model, latency.ROUNDS) for model in models]
    functions = named(blocks, (args.objects / f"effv2_neon_{args.format}.dir").rglob("*.o"))
    lines = iter(llvm.disassemble([word for block in blocks for word in block.words]))
    for i, block in enumerate(blocks):
        times = ", ".join(f"{model} {found[i]:.1f}" for model, found in zip(models, cycles, strict=True))
        print(
            f"\n{block.weight / total:.2%}: {block.executions:,} x {len(block.words)} instructions, "
            f"{block.multiply_adds} of them multiply-adds{', a loop' * block.is_loop}; cycles: {times}"
        )
        print(f"in {functions[i]}" if functions[i] else "in no function of the kernels")
        print(*(f"    {next(lines)}" for _ in block.words), sep="\n")
    return 0


def named(blocks: Iterable[Block], files: Iterable[Path]) -> list[str | None]:
    """The first function that has a block's instructions, by name."""
    known = [
        (plain_name(function.name).partition("(")[0], _bytes(function.words))
        for file in sorted(files)
        for function in llvm.functions(file)
    ]
    return [next((name for name, code in known if _bytes(block.words) in code), None) for block in blocks]


def _bytes(words: Iterable[int]) -> bytes:
    return b"".join(word.to_bytes(4, "little") for word in words)


if __name__ == "__main__":
    sys.exit(main())
