"""What the GPU kernels of two versions take: registers, shared memory, instructions. Needs no GPU.

python bench/versions/kernels.py OLD [--networks s0 l] [--batches 1 32] [--dtypes float16 ...] [--json FILE]

OLD: what git calls a version; the other one is the working tree. Every launch of the networks at 224x224, and
their attention at 512x512, is compiled with its first tile by each version in a process of its own. A launch
that became another one is told by its place: network, batch, block, and number within the block. Exits with 1
where a kernel takes more than it did.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MEASURES = ("registers", "stack", "shared", "instructions")
NETWORKS = ("s0", "s1", "s2", "l")
DTYPES = ("float16", "bfloat16", "float32")

# A line of machine code: its address, the instruction, and how that is encoded.
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", re.MULTILINE)


def main() -> int:
    args = _arguments()
    if args.worker:
        for row in rows_of(args.worker, args.networks, args.batches, args.dtypes, args.capabilities):
            print(json.dumps(row), flush=True)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        _unpack(args.old, folder)
        old, new = _of_version(folder, args), _of_version(str(ROOT), args)
    lost = sorted(old.keys() - new.keys())
    more = [place for place in old.keys() & new.keys() if takes_more(old[place], new[place])]
    print(report(old, new))
    for place in [*lost, *sorted(more)]:
        print(f"{place}: {_short(old[place])} -> {_short(new.get(place))}", file=sys.stderr)
    if args.json:
        Path(args.json).write_text(json.dumps({"old": old, "new": new}, indent=1) + "\n")
    return 1 if more else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", metavar="OLD", nargs="?", default="HEAD", help="a git revision")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["s0", "l"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32], metavar="N")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--capabilities", nargs="+", type=int, default=[90], metavar="N")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--worker", metavar="FOLDER", help=argparse.SUPPRESS)
    return parser.parse_args()


def takes_more(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return any(new[measure] > old[measure] for measure in MEASURES)


def report(old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> str:
    """A line for each kernel and dtype: how many launches, how many with the same code, the sums of both."""
    from effv2_kernels.tables import text_table

    groups: dict[tuple[str, str, int], list[str]] = {}
    for place in sorted(old.keys() & new.keys()):
        row = new[place]
        groups.setdefault((row["kernel"], row["dtype"], row["capability"]), []).append(place)
    cells = []
    for (kernel, dtype, capability), places in groups.items():
        same = sum(old[place]["code"] == new[place]["code"] for place in places)
        less = sum(any(new[p][m] < old[p][m] for m in MEASURES) for p in places)
        more = sum(takes_more(old[p], new[p]) for p in places)
        sums = [f"{sum(old[p][m] for p in places)} -> {sum(new[p][m] for p in places)}" for m in MEASURES]
        cells.append(
            [kernel, dtype, str(capability), str(len(places)), str(same), str(less), str(more), *sums]
        )
    header = ["kernel", "dtype", "sm", "launches", "same", "less", "more", *MEASURES]
    return text_table(header, cells, left=2)


def _short(row: dict[str, Any] | None) -> str:
    return "gone" if row is None else " ".join(f"{row[measure]}" for measure in MEASURES)


def _unpack(revision: str, folder: str) -> None:
    command = ["git", "-C", str(ROOT), "archive", revision, "effv2_kernels"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"git has no version {revision!r} of {ROOT}: {done.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", folder], input=done.stdout, check=True)


def _of_version(folder: str, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": folder}
    command = [sys.executable, str(HERE / "kernels.py"), "--worker", folder, "--networks", *args.networks]
    command += ["--batches", *map(str, args.batches), "--dtypes", *args.dtypes]
    command += ["--capabilities", *map(str, args.capabilities)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return {row["place"]: row for row in map(json.loads, done.stdout.splitlines())}


def rows_of(
    folder: str, networks: list[str], batches: list[int], dtypes: list[str], capabilities: list[int]
) -> Iterator[dict[str, Any]]:
    """A row for each launch of the version in ``folder``."""
    sys.path.insert(0, folder)
    import torch

    from effv2_kernels.triton.ahead import Compilation, compile_in_parallel

    made: dict[str, dict[str, Any]] = {}
    for capability in capabilities:
        for dtype in dtypes:
            launches = list(_launches(networks, batches, getattr(torch, dtype)))
            compile_in_parallel([(launch, launch.tiles[0]) for _, launch in launches], capability)
            for place, launch in launches:
                one = Compilation.of(launch, launch.tiles[0], capability)
                key = json.dumps(asdict(one))
                if key not in made:
                    made[key] = _measured(one.run())
                yield {
                    "place": f"{place} {dtype} sm_{capability}",
                    "kernel": launch.name,
                    "dtype": dtype,
                    "capability": capability,
                    "tile": str(launch.tiles[0]),
                    "tiles": [str(tile) for tile in launch.tiles],
                    **made[key],
                }


def _launches(networks: list[str], batches: list[int], dtype: Any) -> Iterator[tuple[str, Any]]:
    """(where it stands, the launch)."""
    import torch

    from effv2_kernels import shapes

    try:
        maps, kernels = map(import_module, ("effv2_kernels.gpu.launch", "effv2_kernels.triton.kernels"))
    except ImportError:  # of a version whose GPU engine was one with Triton's kernels
        maps, kernels = map(import_module, ("effv2_kernels.triton.launch", "effv2_kernels.triton.plan"))

    try:
        from effv2_kernels.families.efficientformer_v2 import VARIANTS, network_shapes
    except ImportError:  # of a version that knew one family
        from effv2_kernels.reference.model import VARIANTS
        from effv2_kernels.shapes import network_shapes  # type: ignore[attr-defined, no-redef]

    for network in networks:
        architecture = VARIANTS[f"efficientformerv2_{network}"]
        g = torch.Generator().manual_seed(0)
        usual = network_shapes(architecture)
        larger = [s for s in network_shapes(architecture, (512, 512)) if "attention" in s.kind]
        for size, of_size in ((224, usual), (512, larger)):
            for number, shape in enumerate(of_size):
                block = kernels.pack(shapes.random_block(shape, g), dtype, "cpu")
                for batch in batches:
                    x = maps.FeatureMap(batch, shape.height, shape.width, shape.sizes["in"], dtype)
                    for i, launch in enumerate(block.plan(x, "ieee")):
                        yield f"{network} {size} batch {batch} block {number} launch {i}", launch


def _measured(kernel: Any) -> dict[str, Any]:
    """kernel: what Triton compiled."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()

        def dump(option: str) -> str:
            path = os.pathsep.join([str(tools), os.environ.get("PATH", "")])
            return subprocess.run(
                [str(tools / "cuobjdump"), option, file.name],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "PATH": path},
            ).stdout

        used = re.search(r"REG:(\d+) STACK:(\d+)", dump("--dump-resource-usage"))
        assert used is not None
        code = _INSTRUCTION.findall(dump("--dump-sass"))
    return {
        "registers": int(used[1]),
        "stack": int(used[2]),
        "shared": kernel.metadata.shared,
        "instructions": sum(not line.startswith("NOP") for line in code),
        "code": hashlib.sha256("\n".join(code).encode()).hexdigest()[:16],
    }


if __name__ == "__main__":
    raise SystemExit(main())
