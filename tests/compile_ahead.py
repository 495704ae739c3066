"""Compile launches of networks for GPUs that are not here; prints one JSON object for each.

Attention is compiled for images of 512 x 512 as well, where it takes two passes over the keys.

Run by test_triton_ahead.py in a process without Triton's interpreter:
    python compile_ahead.py VARIANTS DTYPE CAPABILITIES WHICH

WHICH: "all" launches of the first network, at batch 1 and 256, and of the others those that have another
kernel, other flags or another tile than all before; or, of each kernel, way to compute its input, stride and
activation, the one with the "smallest" or "largest" tile.
"""

import json
import re
import sys

import torch

from effv2_kernels import blocks, shapes
from effv2_kernels.families import families
from effv2_kernels.gpu.launch import FeatureMap
from effv2_kernels.triton.ahead import Compilation, compile_in_parallel, first_that_fits
from effv2_kernels.triton.feature import Feature
from effv2_kernels.triton.kernels import pack

# Constants that make a kernel another one.
_WAYS = ("SOURCE", "DENSE", "STRIDE", "ACTIVATION")

# A product of float32 on ordinary units (any other inputPrecision is written out) and what it adds to.
_EXACT = re.compile(r"tt\.dot %\w+, %\w+, %(?P<added>\w+) : tensor<\w+xf32, (?=[^*]*\* tensor<\w+xf32, )")


# A product of Hopper's tensor cores whose left factor is in registers, and how many may be under way.
_FROM_REGISTERS = re.compile(r"ttng\.warp_group_dot .*? : tensor<\w+, #ttg\.dot_op<{opIdx = 0")
_UNDER_WAY = re.compile(r"ttng\.warp_group_dot_wait .*pendings = (\d+)")


def long_chains(code):
    """Exact products that go on with the sum of the step before; see tiles.dot."""
    return sum(not found["added"].startswith("cst") for found in _EXACT.finditer(code))


def overwritten(code):
    """Products that may be under way when the registers of their left factor change; see tiles.finished."""
    return max(map(int, _UNDER_WAY.findall(code)), default=0) if _FROM_REGISTERS.search(code) else 0


def launches_of(variant, dtype):
    """(block shape, batch, launch), those of the largest maps and tiles last."""
    g = torch.Generator().manual_seed(0)
    (family,) = (family for family in families() if variant in family.VARIANTS)
    larger = family.variant_shapes(variant, (512, 512))  # where attention takes two passes over the keys
    made = family.variant_shapes(variant) + [s for s in larger if "attention" in s.kind]
    packed = [(shape, pack(shapes.random_block(shape, g), dtype, "cpu")) for shape in made]
    for batch in (1, 256):
        for shape, block in packed:
            x = FeatureMap(batch, shape.height, shape.width, shape.sizes["in"], dtype)
            launches = block.plan(x, "ieee")
            if shape.kind == "ffn":  # whose output a backbone may return
                ones = torch.ones(x.channels)
                launches += Feature(blocks.Feature(0, ones, ones), "cpu").plan(x, "ieee")
            yield from ((shape, batch, launch) for launch in launches)


def chosen(variants, dtype, which):
    """The launches to compile, of all that ``launches_of`` gives."""
    found = {}
    for number, variant in enumerate(variants):
        tiles = {key[:3] for key in found}
        for shape, batch, launch in launches_of(variant, dtype):
            flags = {name: v for name, v in launch.constants.items() if isinstance(v, (bool, str))}
            key = (launch.name, str(flags), str(launch.tiles[0]), str(launch.constants), str(launch.tiles))
            if which != "all":
                key = (launch.name, *map(launch.constants.get, _WAYS))
            if number and key[:3] in tiles:
                continue
            if which == "largest":
                found[key] = (shape, batch, launch)
            else:
                found.setdefault(key, (shape, batch, launch))
            if number:
                tiles.add(key[:3])
    return list(found.values())


def main(variants, dtype, capabilities, which):
    launches = chosen(variants.split(","), getattr(torch, dtype), which)
    for capability in map(int, capabilities.split(",")):
        compile_in_parallel([(launch, launch.tiles[0]) for *_, launch in launches], capability)
        for shape, batch, launch in launches:
            tile, made = first_that_fits(launch, capability)
            row = {"kernel": launch.name, "block": str(shape), "batch": batch}
            row |= {"tile": str(tile), "number": launch.tiles.index(tile), "capability": capability}
            row |= {"registers": made.registers, "stack": made.stack, "shared": made.shared}
            code = Compilation.of(launch, tile, capability).run().asm["ttgir"]
            row |= {"long_chains": long_chains(code), "overwritten": overwritten(code)}
            print(json.dumps(row), flush=True)


main(*sys.argv[1:])
