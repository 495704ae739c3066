"""The one description of a network: frozen blocks with folded weights.

Sources make blocks (``effv2_kernels.sources``), backends run them. A block says what is computed,
never how. All tensors are float32, contiguous, on the CPU, in PyTorch's own layouts; BatchNorm,
layer scale and every constant factor are already folded in (in float64), so each block is exactly
the equation in its docstring. Feature maps are written (N, C, H, W); ``conv`` has padding
``kernel // 2`` everywhere; ``act`` is the activation that a block's option names (see
``effv2_kernels.reference.activation``), GELU the exact x * Phi(x).

A class declares its block, once: from its layers, tensors and options, and the names of their sizes, follow
the checks of shapes, the op's schema, random blocks for tests, and what is stored
(``effv2_kernels.declaration``). What C++ expects (``csrc/engine/spec.h``) is held against it by a test.
"""

# Annotations are objects here, and not text that would have to be evaluated when they are read.
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple, TypeAlias

from torch import Tensor

from effv2_kernels.declaration import ACTIVATIONS, Choice, Shape, arguments, one_of
from effv2_kernels.declaration import Layer as Layer  # what blocks are made of, by the name blocks.Layer

Activation: TypeAlias = Annotated[str, Choice(*ACTIVATIONS)]
Stride: TypeAlias = Annotated[int, Choice(1, 2)]

_KERNELS = (3, 5, 7)


@dataclass(frozen=True, eq=False)
class Block:
    """What all blocks share. ``kind`` is the block's stem: the name of its files in every folder."""

    kind: ClassVar[str]

    @property
    def step(self) -> int | None:
        """Rows and columns of the input for one of the output; None where the output is (N, out)."""
        return 1

    def misfit(self, sizes: dict[str, int]) -> str | None:
        """What of the block does not fit together, beyond the shapes of its tensors; None where all does."""
        return None

    def values(self) -> dict[str, Any]:
        """All tensors and options by name, as ``declaration.assemble`` takes them; None where absent."""
        return {a.name: a.of(self) for a in arguments(type(self))}

    def tensors(self) -> dict[str, Tensor]:
        """The folded weights by name, in the order of declaration; absent ones are left out."""
        return {name: value for name, value in self.values().items() if isinstance(value, Tensor)}

    def options(self) -> dict[str, int | str]:
        """The integers, booleans and names that describe the block, by name; booleans as integers."""
        found = {a.name: a.of(self) for a in arguments(type(self)) if a.shape is None}
        return {name: int(v) if isinstance(v, bool) else v for name, v in found.items()}

    def grid(self) -> tuple[tuple[int, int], int] | None:
        """Rows and columns of keys that an attention bias is made for, and the pixels from one to the next.

        None where the block has no such bias, or resizes it to the input at hand.
        """
        return None


@dataclass(frozen=True, eq=False)
class Stem(Block):
    """y = act(conv2(act(conv1(x)))), both 3x3 with stride 2."""

    kind: ClassVar[str] = "stem"
    conv1: Annotated[Layer, Shape("mid", "in", 3, 3)]
    conv2: Annotated[Layer, Shape("out", "mid", 3, 3)]
    activation: Activation = "gelu"

    @property
    def step(self) -> int | None:
        return 4


@dataclass(frozen=True, eq=False)
class FFN(Block):
    """The bottleneck 1x1 - depthwise - 1x1: y = [x +] fc2(act(dw(act(fc1(x))))).

    EfficientFormerV2 calls it FFN, MobileNetV2 inverted residual. Without ``fc1`` nothing is widened, and
    y = [x +] fc2(act(dw(x))). ``dw`` is depthwise, 3x3, 5x5 or 7x7, with ``stride``. ``residual`` needs
    stride 1 and as many channels out as in. Folded: the layer scale into fc2.
    """

    kind: ClassVar[str] = "ffn"
    fc1: Annotated[Layer | None, Shape("hidden", "in")]
    dw: Annotated[Layer, Shape("hidden", "kernel", "kernel")]
    fc2: Annotated[Layer, Shape("out", "hidden")]
    activation: Activation = "gelu"
    stride: Stride = 1
    residual: bool = True

    @property
    def step(self) -> int | None:
        return self.stride

    def misfit(self, sizes: dict[str, int]) -> str | None:
        if sizes["kernel"] not in _KERNELS:
            return f"the kernel of dw is {sizes['kernel']}; expected {one_of(_KERNELS)}"
        if self.residual and (self.stride != 1 or sizes["in"] != sizes["out"]):
            return (
                f"a residual needs stride 1 and as many channels out as in; got stride = {self.stride}, "
                f"in = {sizes['in']}, out = {sizes['out']}: give residual=False"
            )
        return None


@dataclass(frozen=True, eq=False)
class Attention(Block):
    """Attention over all positions, at half the resolution where ``stride`` is 2.

    z = dw(x) with stride 2, or x;  q, k, v = rows of qkv(z), split in this order, heads outermost;
    P = softmax_keys(mix1_weight . (q k^T) + bias[|row_i - row_j|, |col_i - col_j|]);
    u = mix2(P) v + local(v);  u = bilinear 2x (align_corners=False) if strided;
    y = x + proj(act(u)).

    The talking heads, mix1_weight and mix2, are there together or not at all; bias and local may be absent,
    and then add nothing. A bias fits one grid of keys; without one a map may have any size.
    Folded: the scale 1/sqrt(key_dim) into q; talking head 1 and its bias into ``bias``; layer scale
    into proj. Mixes act on the head axis: (mix . A)[h] = sum_g mix[h, g] A[g].
    The 2x map is cropped to the size of x, so that odd sizes work as well.
    """

    kind: ClassVar[str] = "attention"
    qkv: Annotated[Layer, Shape("qkv", "in")]
    local: Annotated[Layer | None, Shape("values", 3, 3)]
    mix1_weight: Annotated[Tensor | None, Shape("heads", "heads")]
    bias: Annotated[Tensor | None, Shape("heads", "rows", "cols")]  # by distance on a grid of keys
    mix2: Annotated[Layer | None, Shape("heads", "heads")]
    proj: Annotated[Layer, Shape("in", "values")]
    heads: int
    key_dim: int
    value_dim: int  # of one head
    stride: Stride = 1
    # False: the grid of tokens must be bias.shape[1:].  True: the gathered (tokens x tokens) bias of
    # that grid is resized bicubically (align_corners=False) to the grid at hand, as the official
    # detection and segmentation backbones do.
    resize_bias: bool = False
    dw: Annotated[Layer | None, Shape("in", 3, 3, only_if=("stride", 2))] = None
    activation: Activation = "gelu"

    def misfit(self, sizes: dict[str, int]) -> str | None:
        if (self.mix1_weight is None) != (self.mix2 is None):
            given, missing = ("mix1_weight", "mix2") if self.mix2 is None else ("mix2", "mix1_weight")
            return f"{missing} is missing beside {given}; talking heads need both"
        return None

    def grid(self) -> tuple[tuple[int, int], int] | None:
        if self.bias is None or self.resize_bias:
            return None
        rows, cols = self.bias.shape[1:]
        return (rows, cols), self.stride


@dataclass(frozen=True, eq=False)
class Conv(Block):
    """y = act(conv(x)), 1x1, 3x3, 5x5 or 7x7, with ``stride``."""

    kind: ClassVar[str] = "conv"
    conv: Annotated[Layer, Shape("out", "in", "kernel", "kernel", name="")]
    stride: Stride = 1
    activation: Activation = "none"

    @property
    def step(self) -> int | None:
        return self.stride

    def misfit(self, sizes: dict[str, int]) -> str | None:
        if sizes["kernel"] not in (1, *_KERNELS):
            return f"its kernel is {sizes['kernel']}; expected {one_of((1, *_KERNELS))}"
        return None


@dataclass(frozen=True, eq=False)
class AttentionDownsample(Block):
    """Attention from every second row and column to all positions, beside a strided convolution.

    q = q_proj(dw(x)), dw with stride 2 (the 1x1 stride-2 pooling is folded into its centre tap);
    k, v = rows of kv(x), split in this order, heads outermost;
    P = softmax_keys(q k^T + bias[|2 row_i - row_j|, |2 col_i - col_j|]);
    y = proj(act(P v + local(v))) + conv(x);  local is 3x3 depthwise and conv 3x3, both with stride 2.
    """

    kind: ClassVar[str] = "attention_downsample"
    dw: Annotated[Layer, Shape("in", 3, 3)]
    q: Annotated[Layer, Shape("keys", "in")]
    kv: Annotated[Layer, Shape("kv", "in")]
    local: Annotated[Layer, Shape("values", 3, 3)]
    bias: Annotated[Tensor, Shape("heads", "rows", "cols")]  # by distance on a grid of keys
    proj: Annotated[Layer, Shape("out", "values")]
    conv: Annotated[Layer, Shape("out", "in", 3, 3)]
    heads: int
    key_dim: int
    value_dim: int
    resize_bias: bool = False  # as in Attention; query grid of the table: ceil(rows / 2), ceil(cols / 2)
    activation: Activation = "gelu"

    @property
    def step(self) -> int | None:
        return 2

    def grid(self) -> tuple[tuple[int, int], int] | None:
        rows, cols = self.bias.shape[1:]
        return None if self.resize_bias else ((rows, cols), 1)


@dataclass(frozen=True, eq=False)
class Head(Block):
    """logits = linear(mean_{H, W}(x)); BatchNorm and the mean of two classifiers are folded in."""

    kind: ClassVar[str] = "head"
    linear: Annotated[Layer, Shape("out", "in", name="")]  # out: classes

    @property
    def step(self) -> int | None:
        return None


BLOCK_TYPES: dict[str, type[Block]] = {block_type.kind: block_type for block_type in Block.__subclasses__()}


class Earlier(NamedTuple):
    """What a kind of block of an earlier version is now: a kind with these options and sizes."""

    kind: str
    options: dict[str, int | str]
    sizes: dict[str, int]


# Files and programs call blocks by these names. Where a block is one of them, it is still written so, for the
# versions that know no other.
EARLIER_KINDS = {"conv_downsample": Earlier("conv", {"stride": 2}, {"kernel": 3})}


@dataclass(frozen=True, eq=False)
class Feature:
    """A feature map handed to the caller: the output of one block, scaled and shifted per channel.

    ``scale`` and ``shift`` are (channels,) or both None: the BatchNorm that the official backbones
    put on each output, folded.
    """

    block: int  # index into Network.blocks
    scale: Tensor | None = None
    shift: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Network:
    """A whole model: blocks in order of execution, and what is returned.

    The output is the logits of the last block if that is a Head, else the list of ``features``.
    """

    blocks: tuple[Block, ...]
    names: tuple[str, ...]  # dotted path of the source module of each block, e.g. "stages.2.blocks.4.mlp"
    features: tuple[Feature, ...] = ()
    source: str = ""  # which adapter read it: "timm", "official", "reference"
    # Scale and shift (channels,) of the norm in front of the classifier, which the Head has folded in: for
    # who asks for the map between the two. Not part of what is computed, described or stored.
    norm: tuple[Tensor, Tensor] | None = None
