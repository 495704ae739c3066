"""The networks and the image that are counted, in files that an Arm Python reads with NumPy alone.

A network's files hold one model of random weights: for this package its blocks, as ``sources.read`` folds
them, in a .npz file; for ncnn what its converter, pnnx, makes of the same model, traced. The logits that the
model itself gives in float64 are beside them: what is counted is held to these.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import warnings
from importlib import metadata, util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import effv2_kernels
from effv2_kernels import blocks, sources
from effv2_kernels.families.efficientformer_v2.layers import LocalGlobalQuery
from effv2_kernels.shapes import randomise

SIZE = 224
PACKAGE = Path(effv2_kernels.__file__).parent


class Files:
    """Where the files of a network are."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.effv2 = folder / f"{name}.npz"
        self.ncnn = folder / f"{name}.ncnn"  # and .param, .bin
        self.image = folder / f"{name}.image.npy"  # (1, 3, SIZE, SIZE) float32
        self.logits = folder / f"{name}.logits.npy"  # (classes,) float64
        self.key = folder / f"{name}.key"

    def of(self, engine: str) -> tuple[Path, ...]:
        """What a run of an engine depends on."""
        files = (
            [self.effv2]
            if engine == "effv2"
            else [self.ncnn.with_suffix(f".ncnn{e}") for e in (".param", ".bin")]
        )
        return (*files, self.image)

    @property
    def values(self) -> int:
        """All weights and biases, as they are folded."""
        stored = np.load(self.effv2)
        return sum(stored[key].size for key in stored.files if key != "blocks")


def write(folder: Path, name: str) -> Files:
    """The files of a variant, made anew where its code or the converter's version has changed."""
    folder.mkdir(parents=True, exist_ok=True)
    files = Files(folder, name)
    key = _key()
    if files.key.exists() and files.key.read_text() == key:
        return files
    torch.manual_seed(0)
    model = effv2_kernels.create_model(name, img_size=SIZE)
    randomise(model)
    image = torch.randn(1, 3, SIZE, SIZE)
    np.save(files.image, image.numpy())
    _write_blocks(files.effv2, sources.read(model))
    _convert(model, image, files.ncnn)
    with torch.no_grad():
        np.save(files.logits, model.double()(image.double())[0].numpy())
    files.key.write_text(key)
    return files


def _key() -> str:
    digest = hashlib.sha256(f"pnnx {metadata.version('pnnx')}, torch {torch.__version__}".encode())
    for path in [Path(__file__), *sorted(PACKAGE.rglob("*.py"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _write_blocks(path: Path, network: blocks.Network) -> None:
    described = [
        {"kind": block.kind, "options": block.options(), "tensors": list(block.tensors())}
        for block in network.blocks
    ]
    tensors = {
        f"{i}.{name}": tensor.detach().contiguous().numpy()
        for i, block in enumerate(network.blocks)
        for name, tensor in block.tensors().items()
    }
    np.savez(path, blocks=json.dumps(described), **tensors)


class _PooledQuery(nn.Module):
    """LocalGlobalQuery as timm writes it: ncnn has no slices with a step, but it has a pool of one pixel."""

    def __init__(self, query: LocalGlobalQuery) -> None:
        super().__init__()
        self.local, self.proj = query.local, query.proj

    def forward(self, x: Tensor) -> Tensor:
        q: Tensor = self.proj(self.local(x) + nn.functional.avg_pool2d(x, 1, 2))
        return q


def _convert(model: nn.Module, image: Tensor, to: Path) -> None:
    """pnnx's files for a model, with weights in float32 whatever ncnn will keep them in."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LocalGlobalQuery):
                setattr(parent, name, _PooledQuery(child))
    traced = to.with_suffix(".pt")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # sizes become constants, as they shall
        torch.jit.trace(model, image).save(str(traced))
    spec = util.find_spec("pnnx")
    if spec is None or spec.origin is None:
        raise SystemExit("pnnx is not installed: run make bench-aarch64")
    shape = ",".join(map(str, image.shape))
    command = [Path(spec.origin).with_name("pnnx"), traced.name, f"inputshape=[{shape}]", "fp16=0"]
    done = subprocess.run(command, cwd=to.parent, capture_output=True, text=True, check=False)
    made = [to.with_suffix(f".ncnn{extension}") for extension in (".param", ".bin")]
    if done.returncode or not all(path.exists() for path in made):
        raise SystemExit(f"pnnx cannot convert {traced}:\n{(done.stdout + done.stderr)[-2000:]}")
    for extension in (".pt", ".pnnx.bin", ".pnnx.onnx", ".pnnx.param", "_pnnx.py", "_ncnn.py"):
        (to.parent / f"{to.stem}{extension}").unlink(missing_ok=True)
