"""What a version makes of two small networks, kept for later versions to read.

``python tests/earlier_versions.py`` writes the folder of the version at hand, and refuses where it is: what a
version made is never made again. With EFFV2_TEST_NATIVE=build/native/emulating it knows the outputs of
AVX-512 as well.
"""

import gzip
import json
import math
import pickle
import tempfile
from pathlib import Path

import conftest  # noqa: F401  (before the package: it may bring a native module of its own)
import safetensors.torch
import torch
from digests import digest, integers, real
from models import TINY

import effv2_kernels
from effv2_kernels import blocks, cpu, optimize

FOLDER = Path(__file__).with_name("earlier_versions")
SIZES = {"logits": (64, 64), "backbone": (72, 104)}  # of images; the backbone's attention biases are resized


def images(name):
    return integers((2, 3, *SIZES[name]), f"{name}/images", 1)


def _small_integers(key, shape):
    """Few bits each, so that files compress well."""
    exponent = -round(math.log2(math.prod(shape[1:])) / 2) if len(shape) > 1 else -2
    return integers(shape, key, 3).round() * 2.0 ** (exponent - 3)


def network(name):
    """One network with a head, and one that returns features."""
    options = (
        {}
        if name == "logits"
        else {"features_only": True, "resize_bias": True, "feature_norms": (False, True, False, True)}
    )
    fast = optimize(TINY.build(torch.Generator(), img_size=64, **options), verify=False)
    fast.load_state_dict({key: _small_integers(key, tuple(t.shape)) for key, t in fast.state_dict().items()})
    return fast


def outputs_of(fast, name):
    y = fast(images(name))
    return [y] if isinstance(y, torch.Tensor) else list(y)


def schemas():
    """Of every op, in PyTorch's words."""
    names = (*blocks.BLOCK_TYPES, *blocks.EARLIER_KINDS, "network")
    return [str(getattr(torch.ops.effv2, name).default._schema) for name in names]


def _write(folder, name):
    fast = network(name)
    with tempfile.TemporaryDirectory() as scratch:
        made = {kind: Path(scratch) / f"{name}.{kind}" for kind in ("effv2", "safetensors", "pickle", "pt2")}
        effv2_kernels.save(fast, made["effv2"])
        safetensors.torch.save_file(fast.state_dict(), made["safetensors"])
        made["pickle"].write_bytes(pickle.dumps(fast))
        torch.export.save(torch.export.export(fast, (images(name),)), made["pt2"])
        found = {
            real(isa): digest(outputs_of(effv2_kernels.load(made["effv2"], isa=isa), name))
            for isa in cpu.native().available_isas()
        }
        for path in made.values():
            (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    return found


def main():
    folder = FOLDER / effv2_kernels.__version__
    folder.mkdir(parents=True)
    expected = {name: _write(folder, name) for name in SIZES}
    (folder / "digests.json").write_text(json.dumps(expected, indent=1) + "\n")
    (folder / "schemas.txt").write_text("".join(f"{schema}\n" for schema in schemas()))


if __name__ == "__main__":
    main()
