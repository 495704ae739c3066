"""Compile every launch of a network for GPUs that are not here; prints one JSON object for each.

Attention is compiled for images of 512 x 512 as well, where it takes two passes over the keys.

Run by test_triton_ahead.py in a process without Triton's interpreter:
    python compile_ahead.py VARIANT DTYPE CAPABILITIES BATCHES
"""

import json
import re
import sys

import torch

from effv2_kernels import blocks, shapes
from effv2_kernels.reference.model import VARIANTS
from effv2_kernels.triton.ahead import Compilation, compile_in_parallel, first_that_fits
from effv2_kernels.triton.feature import Feature
from effv2_kernels.triton.launch import FeatureMap
from effv2_kernels.triton.plan import pack

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


def main(variant, dtype, capabilities, batches):
    dtype = getattr(torch, dtype)
    g = torch.Generator().manual_seed(0)
    different = {}
    architecture = VARIANTS[variant]
    larger = shapes.network_shapes(architecture, (512, 512))  # where attention takes two passes over the keys
    for shape in shapes.network_shapes(architecture) + [s for s in larger if "attention" in s.kind]:
        packed = pack(shapes.random_block(shape, g), dtype, "cpu")
        for batch in map(int, batches.split(",")):
            x = FeatureMap(batch, shape.height, shape.width, shape.sizes["in"], dtype)
            launches = packed.plan(x, "ieee")
            if shape.kind == "ffn":  # whose output a backbone may return
                ones = torch.ones(x.channels)
                launches += Feature(blocks.Feature(0, ones, ones), "cpu").plan(x, "ieee")
            for launch in launches:
                key = (launch.name, str(launch.constants), str(launch.tiles))
                different.setdefault(key, (shape, batch, launch))
    for capability in map(int, capabilities.split(",")):
        compile_in_parallel([(launch, launch.tiles[0]) for *_, launch in different.values()], capability)
        for shape, batch, launch in different.values():
            tile, made = first_that_fits(launch, capability)
            row = {"kernel": launch.name, "block": str(shape), "batch": batch}
            row |= {"tile": str(tile), "number": launch.tiles.index(tile), "capability": capability}
            row |= {"registers": made.registers, "stack": made.stack, "shared": made.shared}
            code = Compilation.of(launch, tile, capability).run().asm["ttgir"]
            row |= {"long_chains": long_chains(code), "overwritten": overwritten(code)}
            print(json.dumps(row), flush=True)


main(*sys.argv[1:])
