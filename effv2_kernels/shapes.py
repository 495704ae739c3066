"""Shapes of blocks, random blocks of any shape, random weights: what tests and benchmarks share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from effv2_kernels.blocks import BLOCK_TYPES, Block
from effv2_kernels.declaration import arguments, assemble, block_sizes, tensor_shapes

# heads, key_dim and value_dim where none are given: those of EfficientFormerV2
_ATTENTION = {"heads": 8, "key_dim": 32, "value_dim": 128}
_ATTENTION_DOWNSAMPLE = {"heads": 8, "key_dim": 16, "value_dim": 64}
_HEADS = {"attention": _ATTENTION, "attention_downsample": _ATTENTION_DOWNSAMPLE}
# sizes that follow from others, or from the map where no table is given
_FOLLOWING = {"stem": ("mid",), **dict.fromkeys(_HEADS, ("rows", "cols"))}

# The layer that makes what is added to x.
_LAST_OF_BRANCH = {"ffn": "fc2_", "attention": "proj_"}


@dataclass(frozen=True)
class BlockShape:
    """Sizes of one block and of its input.

    sizes: the names of ``effv2_kernels.declaration``: in, out, mid, hidden, kernel, rows, cols as the block
    has them. options: of the block; those left out have their defaults. without: fields that it leaves out.
    """

    kind: str
    height: int
    width: int
    sizes: dict[str, int] = field(hash=False)
    options: dict[str, int | str] = field(default_factory=dict, hash=False)
    without: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Another name for another shape: all sizes that do not follow, all options but defaults."""
        elsewhere = ("kernel", *_FOLLOWING.get(self.kind, ()))
        sizes = "".join(f"-{size}" for name, size in self.sizes.items() if name not in elsewhere)
        kernel = f"-k{self.sizes['kernel']}" if self.sizes.get("kernel", 3) != 3 else ""
        stride = f"-s{self.options['stride']}" if "stride" in self.options else ""
        activation = f"-{self.options['activation']}" if "activation" in self.options else ""
        absent = "".join(f"-no-{name}" for name in self.without)
        options = f"{stride}{activation}{absent}{self._others()}"
        return f"{self.kind}{sizes}{kernel}{options}-{self.height}x{self.width}"

    def _others(self) -> str:
        """The options that are named in full, where they do not have their defaults."""
        usual = {a.name: a.default for a in arguments(BLOCK_TYPES[self.kind])} | _HEADS.get(self.kind, {})
        said = ""
        for name, value in self.options.items():
            if name in ("stride", "activation") or value == usual.get(name):
                continue
            if name == "resize_bias":
                said += f"-table{self.sizes['rows']}x{self.sizes['cols']}"
            elif isinstance(usual.get(name), bool):
                said += f"-{name}" if value else f"-no-{name}"
            else:
                said += f"-{name}{value}"
        return said


def stem(width: int, height: int, columns: int, *, in_channels: int = 3, **options: int | str) -> BlockShape:
    """A stem of ``width`` channels on images of height x columns."""
    sizes = {"in": in_channels, "mid": width // 2, "out": width}
    return BlockShape("stem", height, columns, sizes, options)


def ffn(
    channels: int,
    hidden: int,
    height: int,
    width: int,
    *,
    out: int | None = None,
    kernel: int = 3,
    without: tuple[str, ...] = (),
    **options: int | str,
) -> BlockShape:
    """``out``: another number of channels than those of the input. Without fc1, hidden is channels."""
    sizes = {"in": channels, "hidden": hidden, "kernel": kernel}
    if out is not None:
        sizes["out"] = out
    return BlockShape("ffn", height, width, sizes, options, without)


def conv(
    channels: int, out: int, height: int, width: int, *, kernel: int = 3, **options: int | str
) -> BlockShape:
    return BlockShape("conv", height, width, {"in": channels, "out": out, "kernel": kernel}, options)


def head(channels: int, classes: int, height: int, width: int) -> BlockShape:
    return BlockShape("head", height, width, {"in": channels, "out": classes})


def attention(
    channels: int,
    height: int,
    width: int,
    *,
    stride: int = 1,
    table: tuple[int, int] | None = None,
    without: tuple[str, ...] = (),
    **dims: int | str,
) -> BlockShape:
    """``table``: grid of tokens of a bias that is resized; None is a bias made for this map."""
    rows, cols = table or (math.ceil(height / stride), math.ceil(width / stride))
    options = {**_ATTENTION, **dims, "stride": stride, "resize_bias": int(table is not None)}
    sizes = {"in": channels, "rows": rows, "cols": cols}
    return BlockShape("attention", height, width, sizes, options, without)


def attention_downsample(
    channels: int,
    out: int,
    height: int,
    width: int,
    *,
    table: tuple[int, int] | None = None,
    **dims: int | str,
) -> BlockShape:
    """``table``: grid of keys of a bias that is resized; None is a bias made for this map."""
    rows, cols = table or (height, width)
    options: dict[str, int | str] = {**_ATTENTION_DOWNSAMPLE, **dims, "resize_bias": int(table is not None)}
    sizes = {"in": channels, "out": out, "rows": rows, "cols": cols}
    return BlockShape("attention_downsample", height, width, sizes, options)


def family_shapes(
    kind: str | None = None, image: tuple[int, int] = (224, 224), family: str = "efficientformer_v2"
) -> dict[str, BlockShape]:
    """Every different block of a family's variants by name, e.g. ``s0-ffn-32-128-56x56``.

    kind: blocks of this kind alone. family: its folder. A shape that several variants share is listed once,
    under the smallest.
    """
    from effv2_kernels.families import family_of

    found: dict[str, BlockShape] = {}
    chosen = family_of(family)
    for variant in chosen.VARIANTS:
        for shape in chosen.variant_shapes(variant, image):
            if kind in (None, shape.kind) and shape not in found.values():
                found[f"{variant.rpartition('_')[2]}-{shape}"] = shape
    return found


def shape_of(block: Block) -> BlockShape:
    """The sizes and options of a block, for an input of any size (0 x 0): what ``random_block`` needs."""
    optional = [a for a in arguments(type(block)) if a.optional]
    without = dict.fromkeys(a.field for a in optional if a.of(block) is None)
    return BlockShape(block.kind, 0, 0, block_sizes(block), block.options(), tuple(without))


def random_block(
    shape: BlockShape, generator: torch.Generator, *, spread: float = 0.5, branch: float = 1.0
) -> Any:
    """A block of this shape with random weights that keep activations and logits of order 1.

    spread: standard deviation of the logarithm of the scale of each output channel, as BatchNorm and layer
    scales give to folded weights. branch: scale of what is added to x, where a block ends with that. Biases
    are of order 0.3, attention biases of order 2.
    """
    block_type = BLOCK_TYPES[shape.kind]
    tensors: dict[str, Tensor] = {}
    for name, size in tensor_shapes(block_type, shape.sizes, shape.options, shape.without).items():
        values = torch.randn(size, generator=generator)
        if name == "bias" and len(size) == 3:
            values *= 2.0
        elif name == "mix2_bias":
            values *= 0.03  # it adds this share of the sum of all values, which cancel
        elif len(size) == 1:
            values *= 0.3
        else:
            values *= math.prod(size[1:]) ** -0.5
            scale = torch.randn(size[0], generator=generator).mul(spread).exp()
            scale[: _rows_of_logits(name, shape)] = 1
            values *= scale.view(-1, *[1] * (len(size) - 1))
        if name.startswith(_LAST_OF_BRANCH.get(shape.kind, "-")) and shape.options.get("residual", True):
            values *= branch
        tensors[name] = values
    # Folded blocks hold queries that are scaled already.
    heads, key_dim, _ = _heads(shape)
    for name in ("q_weight", "q_bias", "qkv_weight", "qkv_bias"):
        if name in tensors:
            tensors[name][: heads * key_dim] *= key_dim**-0.5
    return assemble(block_type, {**tensors, **shape.options})


def _heads(shape: BlockShape) -> tuple[int, int, int]:
    heads, key_dim, value_dim = (shape.options.get(name, 0) for name in ("heads", "key_dim", "value_dim"))
    return int(heads), int(key_dim), int(value_dim)


def _rows_of_logits(name: str, shape: BlockShape) -> int:
    """How many rows of a weight make logits: a product of two or three scales would blow up some of them."""
    heads, key_dim, _ = _heads(shape)
    keys = heads * key_dim
    return {"qkv_weight": 2 * keys, "q_weight": keys, "kv_weight": keys, "mix1_weight": heads}.get(name, 0)


def random_input(shape: BlockShape, generator: torch.Generator, batch: int = 1) -> Tensor:
    """(batch, channels, height, width), standard normal, contiguous."""
    return torch.randn(batch, shape.sizes["in"], shape.height, shape.width, generator=generator)


def randomise(model: nn.Module) -> None:
    """Give BatchNorms and layer scales random values, as training would.

    Their initial values (mean 0, variance 1, scales of 1e-5) would hide every error but those of the stem
    and the head.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.uniform_(parameter, 0.1, 0.4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            assert module.running_var is not None
            nn.init.uniform_(module.running_var, 0.7, 1.3)
