"""Compile kernels ahead in processes of their own, then as a launch would; prints what each added.

Run by test_triton_ahead.py in a process without Triton's interpreter, with TRITON_CACHE_DIR an empty folder.
"""

import json
import os

import torch
from claimed_gpu import claim_to_triton
from triton.runtime.jit import MockTensor

from effv2_kernels import shapes
from effv2_kernels.gpu.launch import FeatureMap
from effv2_kernels.triton.ahead import compile_in_parallel
from effv2_kernels.triton.kernels import pack


def cached():
    return len(os.listdir(os.environ["TRITON_CACHE_DIR"]))


def main():
    claim_to_triton()
    pairs = []
    for shape in (shapes.head(24, 10, 3, 3), shapes.ffn(24, 48, 5, 5)):
        block = pack(shapes.random_block(shape, torch.Generator().manual_seed(0)), torch.float16, "cpu")
        x = FeatureMap(1, shape.height, shape.width, shape.sizes["in"], torch.float16)
        pairs += [(launch, launch.tiles[-1]) for launch in block.plan(x, "ieee")]
    compile_in_parallel(pairs, 90)
    ahead = cached()
    for launch, tile in pairs:
        arguments = [
            MockTensor(v.dtype) if isinstance(v, (FeatureMap, torch.Tensor)) else v
            for v in launch.arguments.values()
        ]
        constants, options = launch.settings(tile)
        launch.kernel.warmup(*arguments, grid=(1,), **constants, **options)
    print(json.dumps({"pairs": len(pairs), "ahead": ahead, "for launches": cached() - ahead}))


main()
