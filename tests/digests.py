"""Outputs of the CPU engine as digests: for every block and network, the bits that it has always given.

Weights and inputs are integers times powers of two, made by integer arithmetic alone, so that they are the
same with every library and on every machine. An entry is never changed; HOW_TO_ADD says how one comes in.
"""

import hashlib
import json
import math
import zlib
from pathlib import Path

import conftest  # noqa: F401  (before the package: it may bring a native module of its own)
import numpy as np
import torch
from block_shapes import SHAPES
from checks import TARGETS, Target, as_network, rebuilt

from effv2_kernels import blocks, declaration, shapes
from effv2_kernels.families.efficientformer_v2 import VARIANTS, network_shapes

HOW_TO_ADD = (
    "`python tests/digests.py` adds those of the ISAs that this machine has; without AVX-512, and after "
    "`make test-emulated`, `EFFV2_TEST_NATIVE=build/native/emulating python tests/digests.py` adds the rest, "
    "which `make digests-aarch64` does by Arm's own instructions"
)
FILE = Path(__file__).with_name("digests.json")

# Those with digests: bf16 differs from fp32 in what loads and stores convert alone.
DIGESTED = [target for target in TARGETS if target.dtype != "bf16"]

# An ISA whose sums have the order of another's has its bits, but where there is a GELU: that is its own.
SAME_BITS = {"neon": "avx2"}
IMAGE = (224, 224)

# Fields, by their ending, that are scaled otherwise than by their fan-in.
_EXPONENTS = {"mix2_bias": -6, "_bias": -2, "bias": 0}


def integers(shape, seed, exponent=0):
    """A float32 tensor of 16-bit integers times 2^(exponent - 15), by splitmix64 of position and seed."""
    with np.errstate(over="ignore"):
        z = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(zlib.crc32(seed.encode()) << 32)
        z *= np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    values = (z >> np.uint64(48)).astype(np.int32) - (1 << 15)
    return torch.from_numpy(np.ldexp(values.astype(np.float32), exponent - 15)).view(shape)


def with_integers(block, seed):
    """The block with other weights, each tensor's by its place among the fields."""
    made = {}
    for place, (name, old) in enumerate(block.tensors().items()):
        exponent = next((e for ending, e in _EXPONENTS.items() if name.endswith(ending)), None)
        if exponent is None:
            # Products keep the size of their inputs, and a residual branch is smaller than its input.
            fan_in = math.prod(old.shape[1:])
            exponent = -round(math.log2(fan_in) / 2) - (name in ("fc2_weight", "proj_weight"))
        made[name] = integers(tuple(old.shape), f"{seed}/{place}", exponent)
        if name in ("q_weight", "qkv_weight"):
            made[name][: block.heads * block.key_dim] *= 2.0 ** -round(math.log2(block.key_dim) / 2)
    return rebuilt(block, **made)


def block_cases():
    """Every block that the suite runs, by name: the small ones, and those of S0 to L."""
    return {_name_of_then(name, shape): shape for name, shape in {**SHAPES, **shapes.family_shapes()}.items()}


def _name_of_then(name, shape):
    """What a case is called in digests.json, where its weights come from as well: as its block was then."""
    for kind, now in blocks.EARLIER_KINDS.items():
        if (shape.kind, shape.options) == (now.kind, now.options):
            return name.replace(now.kind, kind).replace("-s2-", "-")
    return name


def run_block(name, target, threads=2):
    """The output of a block case. target: one, or an ISA in fp32."""
    target = Target.of(target)
    shape = block_cases()[name]
    block = with_integers(shapes.random_block(shape, torch.Generator()), name)
    x = integers((2, shape.sizes["in"], shape.height, shape.width), f"{name}/input", 1)
    return target.engine(as_network(block)).run(target.kept(x), threads)


def _network(variant, features):
    made = [
        with_integers(shapes.random_block(shape, torch.Generator()), f"{variant}/{i}")
        for i, shape in enumerate(network_shapes(VARIANTS[variant], IMAGE))
    ]
    if not features:
        return blocks.Network(tuple(made), ("",) * len(made))
    # A backbone: maps instead of the head, attention biases that are resized.
    made = [rebuilt(b, resize_bias=True) if hasattr(b, "resize_bias") else b for b in made[:-1]]
    ends = [i for i, b in enumerate(made) if b.kind in ("conv", "attention_downsample")]
    returned = tuple(
        blocks.Feature(
            i - 1,
            integers((width,), f"{variant}/scale{i}", 0),
            integers((width,), f"{variant}/shift{i}", -2),
        )
        for i in [*ends, len(made)]
        for width in [declaration.block_sizes(made[i - 1])["out"]]
    )
    return blocks.Network(tuple(made), ("",) * len(made), returned)


NETWORKS = {name: (name, IMAGE, False) for name in VARIANTS} | {
    "efficientformerv2_s0 backbone at 160 x 200": ("efficientformerv2_s0", (160, 200), True)
}


def run_network(name, target, threads=2):
    """The outputs of a network case, for two images. target: one, or an ISA in fp32."""
    target = Target.of(target)
    variant, size, features = NETWORKS[name]
    x = integers((2, 3, *size), f"{name}/input", 1)
    return target.engine(_network(variant, features)).run(target.kept(x), threads)


def digest(outputs):
    """Of tensors in the order of their dimensions, whatever their strides."""
    found = hashlib.sha256()
    for y in outputs:
        width = {torch.float32: "<f4", torch.float16: "<f2"}[y.dtype]
        found.update(y.contiguous().numpy().astype(width).tobytes())
    return found.hexdigest()[:32]


def has_gelu(name):
    """Whether a case does."""
    return (
        name in NETWORKS
        or "gelu" in vars(shapes.random_block(block_cases()[name], torch.Generator())).values()
    )


def real(target):
    """The name of the target whose digests it has: emulated, those of the real one."""
    return str(target).replace("_emulated", "")


def recorded(target):
    """By case. target: one, or its name."""
    known = json.loads(FILE.read_text())
    twin = known.get(SAME_BITS.get(real(target)), {})
    return {name: of for name, of in twin.items() if not has_gelu(name)} | known.get(real(target), {})


def main():
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    for target in DIGESTED:
        entries = known.setdefault(real(target), {})
        for cases, run in ((block_cases(), run_block), (NETWORKS, run_network)):
            for name in cases:
                if name not in entries and (real(target) not in SAME_BITS or has_gelu(name)):
                    entries[name] = digest(run(name, target))
                    print(target, name, entries[name], flush=True)
    FILE.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
