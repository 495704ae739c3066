"""libeffv2 by ctypes: what tests hold against Python. The library is that of `make c-library`."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
BUILD = Path(os.environ.get("EFFV2_TEST_BUILD") or ROOT / "build" / "native")
LIBRARY = BUILD / ("libeffv2.dylib" if sys.platform == "darwin" else "libeffv2.so")

STATUS = {
    1: "failed",
    2: "invalid argument",
    3: "file error",
    4: "invalid network",
    5: "unknown version",
    6: "unavailable",
    7: "invalid size",
    8: "out of memory",
    9: "overflow",
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Options(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("dtype", ctypes.c_char_p),
        ("isa", ctypes.c_char_p),
        ("threads", ctypes.c_int),
    )


class Description(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("dtype", ctypes.c_char_p),
        ("isa", ctypes.c_char_p),
        ("file_dtype", ctypes.c_char_p),
        ("value_bytes", ctypes.c_size_t),
        ("channels", ctypes.c_int),
        ("outputs", ctypes.c_int),
        ("has_head", ctypes.c_int),
        ("blocks", ctypes.c_int),
        ("threads", ctypes.c_int),
        ("packed_bytes", ctypes.c_int64),
    )


class Shape(ctypes.Structure):
    _fields_ = (("channels", ctypes.c_int), ("height", ctypes.c_int), ("width", ctypes.c_int))


class Images(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("count", "channels", "height", "width")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("image", "channel", "row", "column")),
    )


class Refused(Exception):
    """A status of the library, in words, and its reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{STATUS[status]}: {reason}")
        self.status, self.reason = STATUS[status], reason


def library() -> ctypes.CDLL:
    assert LIBRARY.exists(), f"there is no {LIBRARY}: `make c-library` builds it"
    loaded = ctypes.CDLL(str(LIBRARY))
    loaded.effv2_error.restype = ctypes.c_char_p
    loaded.effv2_version.restype = ctypes.c_char_p
    loaded.effv2_working_bytes.restype = ctypes.c_int64
    loaded.effv2_class_name.restype = ctypes.c_char_p
    loaded.effv2_free.argtypes = (ctypes.c_void_p,)
    return loaded


class Network:
    """A network in the library; Refused where it does not take the file, or a call."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        dtype: str | None = None,
        isa: str | None = None,
        threads: int = 0,
    ) -> None:
        self._library, self._network = library(), ctypes.c_void_p()
        options = Options(ctypes.sizeof(Options), dtype and dtype.encode(), isa and isa.encode(), threads)
        self._check(
            self._library.effv2_load_file(
                os.fsencode(path), ctypes.byref(options), ctypes.byref(self._network)
            )
        )

    def __del__(self) -> None:
        self._library.effv2_free(self._network)

    def _check(self, status: int) -> None:
        if status:
            raise Refused(status, self._library.effv2_error().decode("utf-8", "replace"))

    def describe(self) -> Description:
        found = Description(ctypes.sizeof(Description))
        self._check(self._library.effv2_describe(self._network, ctypes.byref(found)))
        return found

    def output_shape(self, index: int, height: int, width: int) -> tuple[int, int, int]:
        shape = Shape()
        self._check(
            self._library.effv2_output_shape(
                self._network, index, ctypes.c_int64(height), ctypes.c_int64(width), ctypes.byref(shape)
            )
        )
        return shape.channels, shape.height, shape.width

    def class_name(self, index: int) -> str | None:
        found: bytes | None = self._library.effv2_class_name(self._network, index)
        return None if found is None else found.decode()

    def run(self, x: Tensor, threads: int = 0) -> list[Tensor]:
        """The outputs for images (N, C, H, W) of any strides: (N, classes), or maps (N, C, H, W)."""
        about = self.describe()
        shapes = [self.output_shape(i, *x.shape[2:]) for i in range(about.outputs)]
        memory = [torch.full((x.shape[0], h, w, c), torch.nan, dtype=x.dtype) for c, h, w in shapes]
        images = Images(x.data_ptr(), *x.shape, *x.stride())
        addresses = (ctypes.c_void_p * len(memory))(*(y.data_ptr() for y in memory))
        self._check(
            self._library.effv2_run(
                self._network, ctypes.byref(images), addresses, len(memory), ctypes.c_int(threads)
            )
        )
        return [y.flatten(1) if about.has_head else y.permute(0, 3, 1, 2) for y in memory]
