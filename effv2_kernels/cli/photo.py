"""Photographs as the published models expect them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from effv2_kernels.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CROP = 0.95


def read(path: str | os.PathLike[str], size: tuple[int, int]) -> Tensor:
    """The photograph of a file, prepared. Raises InputError where it is missing or no picture."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise UnavailableError(
            "reading photographs needs Pillow: pip install 'effv2_kernels[cli]'."
        ) from error
    try:
        with Image.open(path) as image:
            return prepare(image, size)
    except FileNotFoundError as error:
        raise InputError(f"there is no file {os.fspath(path)!r}; give the path of a photograph.") from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{os.fspath(path)!r} is not a picture that Pillow can read; give a JPEG or PNG file."
        ) from error
    except OSError as error:
        raise InputError(f"{os.fspath(path)!r} cannot be read: {error}.") from error


def prepare(image: Image, size: tuple[int, int]) -> Tensor:
    """(1, 3, rows, columns) float32: turned upright, resized, cropped to the middle, normalised.

    The bicubic resize leaves CROP of the picture in the crop; MEAN and STD are ImageNet's: the settings
    that timm publishes with its weights of this family.
    """
    import numpy as np
    import torch
    from PIL import Image as images
    from PIL import ImageOps

    rows, columns = size
    upright = (ImageOps.exif_transpose(image) or image).convert("RGB")
    height, width = int(rows / CROP), int(columns / CROP)
    if height * upright.width > width * upright.height:
        width = height * upright.width // upright.height
    else:
        height = width * upright.height // upright.width
    resized = upright.resize((width, height), images.Resampling.BICUBIC)
    top, left = round((height - rows) / 2), round((width - columns) / 2)
    cropped = resized.crop((left, top, left + columns, top + rows))
    pixels = torch.from_numpy(np.array(cropped, dtype=np.float32) / 255)
    normalised = (pixels - torch.tensor(MEAN)) / torch.tensor(STD)
    return normalised.permute(2, 0, 1)[None].contiguous()
