"""Run a network once between two marks: what an Arm Python does under QEMU, with NumPy and one engine alone.

python emulated.py ENGINE FORMAT NETWORK IMAGE OUTPUT

ENGINE is effv2 or ncnn, FORMAT fp32 or fp16. NETWORK is what ``networks.py`` wrote for that engine, IMAGE a
.npy file of (1, 3, rows, columns) float32; OUTPUT gets the logits (classes,) float32. Exits with ABSENT, and
a line that says why, where the engine does not have the format.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable

import numpy as np

ABSENT = 3
MARK, BEGIN, END = 0x6D61726B, 1, 2  # those of executed_blocks.c
TYPES = {"fp32": np.float32, "fp16": np.float16}

Run = Callable[[], np.ndarray]


def main(engine: str, kind: str, network: str, image: str, output: str) -> None:
    pixels = np.load(image)
    run = {"effv2": effv2, "ncnn": ncnn}[engine](kind, network, pixels)
    if engine == "effv2":
        run()  # plans memory for images of this size: half a percent of what S0 executes
    # ncnn's first call executes 0.02 % less than its second one, and takes minutes: there is no other.
    mark = ctypes.CDLL(None).getpriority
    mark(MARK, BEGIN)
    logits = run()
    mark(MARK, END)
    np.save(output, logits.astype(np.float32))


def effv2(kind: str, network: str, pixels: np.ndarray) -> Run:
    """The compiled engine of this package, without Torch. network: a .npz file."""
    from effv2_kernels import _native

    if kind not in _native.formats("neon"):
        print(f"the engine has no {kind} on NEON")
        raise SystemExit(ABSENT)
    stored = np.load(network)
    packed = _native.Network("neon", sum(stored[key].nbytes for key in stored.files), kind)
    for i, block in enumerate(json.loads(str(stored["blocks"]))):
        tensors = {name: stored[f"{i}.{name}"] for name in block["tensors"]}
        packed.add(block["kind"], tensors, block["options"])
    pixels = np.ascontiguousarray(pixels.astype(TYPES[kind]))
    rows, columns = pixels.shape[2:]
    logits = np.empty(packed.block_shapes(rows, columns)[-1][0], pixels.dtype)
    strides = [stride // pixels.itemsize for stride in pixels.strides]

    def run() -> np.ndarray:
        packed.run(pixels.ctypes.data, pixels.shape, strides, [logits.ctypes.data], 1)
        return logits

    return run


def ncnn(kind: str, network: str, pixels: np.ndarray) -> Run:
    """ncnn with all that makes it fast. network: the path of its files without .param and .bin."""
    import ncnn as library

    net = library.Net()
    option = net.opt
    option.num_threads = 1
    option.lightmode = True
    option.use_packing_layout = True
    option.use_winograd_convolution = True
    option.use_sgemm_convolution = True
    option.use_bf16_storage = False
    option.use_fp16_packed = option.use_fp16_storage = option.use_fp16_arithmetic = kind == "fp16"
    if net.load_param(f"{network}.param") or net.load_model(f"{network}.bin"):
        raise SystemExit(f"ncnn cannot load {network}")
    mat = library.Mat(pixels[0]).clone()

    def run() -> np.ndarray:
        extractor = net.create_extractor()
        extractor.input("in0", mat)
        return np.array(extractor.extract("out0")[1])

    return run


if __name__ == "__main__":
    main(*sys.argv[1:])
