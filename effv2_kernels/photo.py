"""Pictures as models expect them: photographs as the published ones do, or grey ones.

A picture is read as timm and torchvision read it, ``convert("RGB")``: colour profiles are ignored, of an
animation the first frame counts, and transparency is dropped, so that what is stored beneath counts. Grey of
16 bits, which Pillow would clip to white, is brought to 8 by its upper byte, as Pillow does for colours. For
a model of one channel colours become grey, ``convert("L")``.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from typing import TYPE_CHECKING

from effv2_kernels import memory
from effv2_kernels.errors import InputError, UnavailableError, reason

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CROP = 0.95
MOST_PIXELS = 178_956_970  # half a gigabyte of RGB; where Pillow itself stops

_HEIF = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1")


def read(path: str | os.PathLike[str], size: tuple[int, int], channels: int = 3) -> Tensor:
    """The picture of a file, prepared. Raises InputError where it is missing or no picture."""
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise UnavailableError(
            "reading photographs needs Pillow: pip install 'effv2_kernels[cli]'."
        ) from error
    name = repr(os.fspath(path))
    if os.path.isdir(path):
        raise InputError(
            f"{name} is a directory; give the photographs in it, such as {os.fspath(path)}/*.jpg."
        )
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
        raise InputError(f"{name} is no regular file; give the path of a photograph.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about metadata that is not used
        with _opened(path, name) as image:
            return _decoded(image, name, size, channels)


def prepare(image: Image, size: tuple[int, int], channels: int = 3) -> Tensor:
    """(1, channels, rows, columns) float32: turned upright, resized, cropped to the middle, normalised.

    The bicubic resize leaves CROP of the picture in the crop; MEAN and STD are ImageNet's: the settings
    that timm publishes with its weights of this family. channels: 3, or 1 for grey. Raises InputError for
    other channels, and for a picture that is no 8-bit picture by convention (floats, 32-bit integers) or too
    thin to be resized.
    """
    import numpy as np
    import torch
    from PIL import Image as images
    from PIL import ImageOps

    if channels not in (1, 3):
        raise InputError(f"pictures have 1 or 3 channels, and the model takes images of {channels}.")
    rows, columns = size
    upright = rgb(ImageOps.exif_transpose(image) or image, image.format)
    if channels == 1:
        upright = upright.convert("L")
    height, width = resized_size(upright.size, size)
    if height * width > MOST_PIXELS:
        raise InputError(
            f"a picture of {upright.width}x{upright.height} is too thin to be cut to {rows}x{columns}: "
            f"resized, it has {height * width / 1e6:.0f} megapixels, and {MOST_PIXELS / 1e6:.0f} fit at "
            f"most. Crop it."
        )
    resized = upright.resize((width, height), images.Resampling.BICUBIC)
    top, left = round((height - rows) / 2), round((width - columns) / 2)
    cropped = resized.crop((left, top, left + columns, top + rows))
    pixels = torch.from_numpy(np.array(cropped, dtype=np.float32).reshape(rows, columns, channels) / 255)
    mean, std = (torch.tensor(of_channels(values, channels)) for values in (MEAN, STD))
    return ((pixels - mean) / std).permute(2, 0, 1)[None].contiguous()


def of_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A value for each channel: of grey images the mean of those of colours, as timm has it."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def rgb(image: Image, stored_as: str | None) -> Image:
    """A picture of a file of Pillow's format ``stored_as`` in 8-bit RGB; see the module.

    Raises InputError where its values have no fixed white."""
    import numpy as np
    from PIL import Image as images

    # Pillow reads 16 bits as mode I;16, or as I: PGM, and before version 11 PNG too.
    if image.mode.startswith("I;16") or (image.mode == "I" and stored_as in ("PNG", "PPM")):
        return images.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "floats" if image.mode == "F" else "32-bit integers"
        raise InputError(f"the picture holds {kind}, which have no fixed white: save it with 8 or 16 bits.")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")  # the same colours, without Pillow's warning
    return image.convert("RGB")


def resized_size(picture: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of a picture of (columns, rows) of which CROP is to fill ``size``, (rows, columns)."""
    height, width = int(size[0] / CROP), int(size[1] / CROP)
    if height * picture[0] > width * picture[1]:
        return height, height * picture[0] // picture[1]
    return width * picture[1] // picture[0], width


def _opened(path: str | os.PathLike[str], name: str) -> Image:
    from PIL import Image, UnidentifiedImageError

    # Pillow's own guard ends in an error of no use before the format is known; _decoded looks at the size.
    most, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        return Image.open(path)
    except FileNotFoundError as error:
        raise InputError(f"there is no file {name}; give the path of a photograph.") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name} {_unidentified(path)}.") from error
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        _check_memory(error, name)
        raise InputError(f"{name} cannot be read: {reason(error)}.") from error
    finally:
        Image.MAX_IMAGE_PIXELS = most


def _decoded(image: Image, name: str, size: tuple[int, int], channels: int) -> Tensor:
    stored = image.size
    if math.prod(stored) > MOST_PIXELS:
        # A JPEG can be decoded at a half, quarter or eighth: the smallest that is large enough is taken.
        needed = max(resized_size(stored, size) + resized_size(stored, (size[1], size[0])))
        image.draft("RGB", (needed, needed))
    if math.prod(image.size) > MOST_PIXELS:
        raise InputError(
            f"{name} has {stored[0]}x{stored[1]} = {math.prod(stored) / 1e6:.0f} megapixels, and at most "
            f"{MOST_PIXELS / 1e6:.0f} are decoded: make it smaller first (a large JPEG is decoded smaller)."
        )
    try:
        image.load()
        if _has_transparency(image):
            print(f"{name}: transparent parts count as the colours stored beneath.", file=sys.stderr)
        return prepare(image, size, channels)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        _check_memory(error, name)
        raise InputError(
            f"{name} cannot be decoded, it may be truncated: {reason(error)}. Save it again as JPEG or PNG."
        ) from error


def _check_memory(error: Exception, name: str) -> None:
    if memory.lacks(error):
        raise memory.refusal(f"decode {name}", "free some, or make it smaller") from error


def _has_transparency(image: Image) -> bool:
    import numpy as np

    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if not image.mode.upper().endswith("A"):
        return False
    return bool(np.asarray(image.getchannel(image.getbands()[-1])).min() < 255)


def _unidentified(path: str | os.PathLike[str]) -> str:
    with open(path, "rb") as file:
        head = file.read(16)
    if not head:
        return "is empty; fetch it again"
    if head[4:12] in _HEIF:
        return "is a HEIC picture, as telephones take them, which Pillow does not read; save it as JPEG"
    return "is not a picture that Pillow can read; give a JPEG or PNG file"
