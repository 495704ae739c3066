"""Compile on any machine what run_all.py launches, so that the GPU does not wait for compilers.

    python bench/gpu/kernels.py build/kernels.tar.xz --capability 90

With the same versions of Python and Triton, and the same build of them, as beside the GPU: Triton finds a
compiled kernel by a hash of itself. Where it does not, run_all.py says so and compiles as usual. prepare.py
calls this for what run_all.py is given.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.gpu.targets import BATCHES, VARIANTS, batches, models

# Of all that Triton keeps of a kernel, what it needs to launch it.
_KEPT = (".cubin", ".json")
_IDENTITY = "identity.json"


def identity() -> dict[str, str]:
    """What Triton's hash of a kernel depends on, beside the kernel."""
    import triton
    from triton.runtime.cache import triton_key

    key = hashlib.sha256(triton_key().encode()).hexdigest()
    return {"triton": triton.__version__, "key": key}


def compile_all(variants: Sequence[str], batches: Sequence[int], capability: int) -> None:
    """All tiles of the networks at 224x224 in fp16, and of what parity checks the first ones."""
    import torch

    from bench.gpu import parity
    from bench.gpu.models import shapes_of
    from effv2_kernels.triton.ahead import compile_in_parallel
    from effv2_kernels.triton.launch import Launch

    pairs = [
        (launch, tile)
        for shape in shapes_of(variants).values()
        for launch in parity.launches_of(shape, "fp16", batches)
        for tile in launch.tiles
    ]
    for group in parity.groups(variants, torch.device("cpu")):
        pairs += [(launch, launch.tiles[0]) for launch in group.launches()]
    of_triton = [(launch, tile) for launch, tile in pairs if isinstance(launch, Launch)]
    compile_in_parallel(of_triton, capability)


def keep(cache: Path, path: Path) -> int:
    """Write the kernels in a cache of Triton's to ``path``; how many there are."""
    kernels = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:xz", preset=6) as archive, tempfile.TemporaryDirectory() as folder:
        written = Path(folder, _IDENTITY)
        written.write_text(json.dumps(identity()), encoding="utf-8")
        archive.add(written, _IDENTITY)
        # Like beside like, which compresses best.
        for file in sorted(cache.rglob("*"), key=lambda file: (file.suffix, file.stat().st_size)):
            if file.suffix in _KEPT and file.parent.parent == cache:
                kernels += file.suffix == ".cubin"
                archive.add(file, file.relative_to(cache).as_posix())
    return kernels


def bring_back(path: Path) -> str:
    """Put kept kernels into this machine's cache of Triton's, and say what came of it.

    Raises OSError and tarfile.TarError where that is no file of ``keep``.
    """
    import triton

    cache = Path(triton.knobs.cache.dir)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent) as folder:
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
        kept = Path(folder)
        made_by = json.loads((kept / _IDENTITY).read_text(encoding="utf-8"))
        if made_by != identity():
            return f"kernels compiled by another build of Triton ({made_by['triton']}) are left alone"
        count = 0
        for group in kept.glob("*/__grp__*.json"):
            there = cache / group.parent.name
            names = json.loads(group.read_text(encoding="utf-8"))["child_paths"]
            # Triton follows these paths, which are those of another machine.
            group.write_text(json.dumps({"child_paths": {name: str(there / name) for name in names}}))
            if not there.exists():
                os.rename(group.parent, there)
            count += 1
    return f"{count} kernels compiled ahead"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("path", type=Path, help="file to write, .tar.xz")
    parser.add_argument("--capability", type=int, default=90, help="of the GPU; default: 90")
    parser.add_argument("--cache", type=Path, help="keeps what is compiled; default: PATH.cache")
    parser.add_argument("--models", type=models, default=VARIANTS, help="default: all")
    parser.add_argument("--batches", type=batches, default=BATCHES, help="default: all")
    args = parser.parse_args(arguments)
    from effv2_kernels.triton import identity

    cache = args.cache or Path(f"{args.path}.cache")
    # All of a cache is kept: kernels of other sources would come along.
    cache /= identity.code_of(Path(identity.__file__).parent)[:12]
    os.environ["TRITON_CACHE_DIR"] = str(cache.resolve())
    compile_all(args.models, args.batches, args.capability)
    count = keep(cache, args.path)
    print(f"{count} kernels in {args.path}, {args.path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
