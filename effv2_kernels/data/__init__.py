"""A small trained network and the digits that it reads: real input for the demo and the tests.

``scripts/train_digits.py`` makes the network.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from effv2_kernels.errors import CheckpointError, UnavailableError

if TYPE_CHECKING:
    from effv2_kernels.families.efficientformer_v2 import EfficientFormerV2

DIGITS_FILE = Path(__file__).with_name("digits.safetensors")
DIGITS_SIZE = 64  # rows and columns of the images that the network takes
DIGITS_TEST_IMAGES = 500
_SPLIT_SEED = 2212

Labelled = tuple[Tensor, Tensor]


def digits_split() -> tuple[Labelled, Labelled]:
    """scikit-learn's handwritten digits, always split in the same way: (training, test).

    Each half is images (N, 1, 64, 64) float32 in [-1, 1], scaled up bilinearly from 8x8, and classes (N,)
    int64. The data comes with scikit-learn; raises UnavailableError where that is not installed.
    """
    import numpy as np

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UnavailableError("the digits come with scikit-learn: pip install scikit-learn.") from error
    data = load_digits()
    # RandomState's stream is frozen by numpy's compatibility policy, so the split never changes.
    order = torch.from_numpy(np.random.RandomState(_SPLIT_SEED).permutation(len(data.target)))
    small = torch.from_numpy(data.images).float()[order, None] / 8 - 1  # 0 ... 16 -> -1 ... 1
    images = F.interpolate(small, size=(DIGITS_SIZE, DIGITS_SIZE), mode="bilinear", align_corners=False)
    classes = torch.from_numpy(data.target).long()[order]
    first = len(classes) - DIGITS_TEST_IMAGES
    return (images[:first], classes[:first]), (images[first:], classes[first:])


def digits_metadata() -> dict[str, Any]:
    """What the file says of the network: its architecture, and the test images that it reads rightly."""
    from safetensors import safe_open

    with safe_open(DIGITS_FILE, "pt") as file:
        metadata: dict[str, Any] = json.loads(file.metadata()["digits"])
    return metadata


def load_digits_network() -> EfficientFormerV2:
    """The trained network, in eval mode: images as of ``digits_split`` -> logits (N, 10)."""
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(
            "the digits network is a safetensors file: pip install 'effv2_kernels[io]'."
        ) from error
    from effv2_kernels.families.efficientformer_v2 import Architecture, EfficientFormerV2

    sizes = digits_metadata()["architecture"]
    architecture = Architecture(
        widths=tuple(sizes["widths"]),
        depths=tuple(sizes["depths"]),
        ratios=tuple(sizes["ratios"]),
        attention_blocks=(sizes["attention_blocks"][0], sizes["attention_blocks"][1]),
    )
    model = EfficientFormerV2(architecture, img_size=DIGITS_SIZE, in_channels=1, num_classes=10)
    model.load_state_dict(load_file(DIGITS_FILE))
    return model.eval()
