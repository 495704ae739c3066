"""Models for tests: small odd architectures, and weights that hide no error."""

from dataclasses import dataclass

import pytest
import torch

from effv2_kernels.families import mobilenet_v2
from effv2_kernels.families.efficientformer_v2 import Architecture, EfficientFormerV2
from effv2_kernels.families.mobilenet_v2 import MobileNetV2
from effv2_kernels.families.mobilenet_v2.architecture import Stage


def uniform(shape, low, high, generator):
    return torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low


@torch.no_grad()
def randomise(model, generator):
    """Give every part of a model a random value of its own, in place; returns the model in eval mode.

    Fresh models hide errors: BatchNorm is the identity, biases are 0, layer scales 1e-5.
    Works for timm's, the official and the reference model.
    """
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        last = name.rpartition(".")[2]
        if not value.is_floating_point():
            continue
        if last == "running_var":
            new = uniform(value.shape, 0.4, 2.5, generator)
        elif last == "running_mean":
            new = uniform(value.shape, -0.5, 0.5, generator)
        elif last == "gamma" or last.startswith("layer_scale"):
            sign = torch.randint(0, 2, value.shape, generator=generator) * 2 - 1
            # Above 0.4 the largest models grow a hundredfold over their blocks, softmax becomes argmax, and
            # rounding errors grow along: such a model says nothing about the code.
            new = uniform(value.shape, 0.1, 0.4, generator) * sign
        elif last.startswith("attention_biases"):
            new = uniform(value.shape, -3, 3, generator)
        elif value.ndim == 1 and last == "weight":  # of a BatchNorm
            new = uniform(value.shape, 0.5, 1.5, generator)
        elif value.ndim == 1:
            new = uniform(value.shape, -0.5, 0.5, generator)
        else:
            limit = (3 / (value.numel() / value.shape[0])) ** 0.5  # keeps the variance
            new = uniform(value.shape, -limit, limit, generator)
        value.copy_(new)
    # Some models' eval() returns None, and some gather their bias there: not chained, and done last.
    model.eval()
    return model


@dataclass(frozen=True)
class Spec:
    """A model to build for a test."""

    name: str
    architecture: Architecture
    img_size: int | tuple[int, int] = 64
    in_channels: int = 3
    num_classes: int = 10
    distillation: bool = True
    layer_scale_init: float | None = 1e-5

    def build(self, generator, **changes):
        options = {
            "img_size": self.img_size,
            "in_channels": self.in_channels,
            "num_classes": self.num_classes,
            "distillation": self.distillation,
            "layer_scale_init": self.layer_scale_init,
        }
        return randomise(EfficientFormerV2(self.architecture, **(options | changes)), generator)

    def images(self, generator, batch=1):
        size = self.img_size if isinstance(self.img_size, tuple) else (self.img_size, self.img_size)
        return torch.randn(batch, self.in_channels, *size, generator=generator)


@dataclass(frozen=True)
class MobileSpec(Spec):
    """A MobileNetV2, of ``mobilenet_v2.Architecture``: what it does not have it is not asked for."""

    def build(self, generator, *, img_size=None, features_only=False):
        options = {"in_channels": self.in_channels, "num_classes": self.num_classes}
        return randomise(MobileNetV2(self.architecture, features_only=features_only, **options), generator)


# The least that has a block of every kind.
TINY = Spec("tiny", Architecture((8, 8, 16, 16), (1, 0, 1, 0), 2, (1, 0)), img_size=32)

# Other widths, depths, ratios, attention counts, resolutions, channels and heads than the published ones.
SMALL = [
    Spec("every_part_once", Architecture((16, 24, 40, 56), (1, 1, 2, 2), 3.0, (1, 1))),
    Spec(
        "odd_map_not_square",
        Architecture((24, 40, 72, 104), (1, 2, 2, 2), (1.0, 2.5, 3.3, 6.0), (2, 1)),
        img_size=(72, 104),
    ),
    Spec(
        "one_channel_no_distillation",
        Architecture((8, 16, 24, 40), (2, 1, 3, 1), (4, 4, (1, 2.5, 6), 3.3), (1, 1)),
        img_size=(33, 95),
        in_channels=1,
        num_classes=3,
        distillation=False,
    ),
    Spec("no_attention_blocks", Architecture((40, 40, 40, 40), (1, 0, 1, 1), 2.5, 0), img_size=96),
    Spec(
        "attention_everywhere",
        Architecture((16, 16, 24, 24), (1, 1, 2, 3), (1, 1, 3.3, 2), (2, 3)),
        img_size=(160, 32),
        num_classes=0,
        layer_scale_init=None,
    ),
    Spec(
        "five_channels_one_pixel",
        Architecture((16, 24, 32, 48), (1, 1, 1, 1), 4, 1),
        img_size=7,
        in_channels=5,
    ),
]

# Any width, depth, kernel order and stride; images whose rows and columns are not even at any stage.
SMALL_MOBILE = [
    MobileSpec(
        "mobilenet_v2_small",
        mobilenet_v2.Architecture(
            8, (Stage(1, 8, 1, 1), Stage(6, 16, 2, 2), Stage(3, 24, 2, 2), Stage(6, 24, 1, 1)), 40
        ),
        img_size=(49, 70),
    ),
    MobileSpec(
        "mobilenet_v2_010",
        mobilenet_v2.scaled(0.1),
        img_size=33,
        in_channels=1,
        num_classes=0,
    ),
]

# One of each family, for what is the same for all; and the least that shows it.
FAMILIES = [SMALL[0], SMALL_MOBILE[0]]
LEAST = [TINY, SMALL_MOBILE[0]]


def name_of(spec):
    """For the names of test cases."""
    return spec.name


def relative_error(actual, expected):
    """Relative L2 distance over the whole output, in float64."""
    actual, expected = actual.double(), expected.double()
    return ((actual - expected).norm() / expected.norm()).item()


# Sizes for the official code, which takes square images of 3 channels only.
ODD_SQUARE = [
    Architecture((16, 24, 40, 56), (1, 1, 2, 2), 3.0, (1, 1)),
    Architecture((24, 40, 72, 104), (1, 2, 2, 3), (1.0, 2.5, 3.3, 6.0), (2, 1)),
    Architecture((8, 16, 24, 32), (1, 1, 1, 1), 4, 0),
]


def timm_odd(generator, **options):
    """timm's class at widths, depths and ratios that none of its models has."""
    module = pytest.importorskip("timm.models.efficientformer_v2")
    settings = {
        "depths": (1, 1, 2, 2),
        "embed_dims": (16, 24, 40, 56),
        "mlp_ratios": (1.0, 2.5, (3.3, 6.0), 4.0),
        "num_vit": 1,
        "img_size": (64, 96),
        "in_chans": 1,
        "num_classes": 3,
    }
    return randomise(module.EfficientFormerV2(**(settings | options)), generator)
