"""EfficientFormerV2 in plain PyTorch.

Li et al., "Rethinking Vision Transformers for MobileNet Size and Speed", arXiv 2212.08059.

The state-dict keys are those of timm's model, so that its weights load as they are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from effv2_kernels.checkpoint import load_into, read, read_pretrained
from effv2_kernels.errors import InputError, ModelError, UnknownNameError
from effv2_kernels.reference.attention import AttentionLayer
from effv2_kernels.reference.attention_downsample import AttentionDownsampleLayer
from effv2_kernels.reference.conv import ConvDownsampleLayer
from effv2_kernels.reference.ffn import FFNLayer
from effv2_kernels.reference.head import classify
from effv2_kernels.reference.layers import layer_scale
from effv2_kernels.reference.stem import StemLayer


@dataclass(frozen=True)
class Architecture:
    """The size of a network: four stages.

    ``ratios``: hidden channels of each FFN over its width; one number for all, one for each stage, or
    one for each block of each stage. ``attention_blocks``: how many of the last blocks of stages 3 and 4
    begin with attention; one number for both or a pair.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    ratios: float | tuple[float | tuple[float, ...], ...] = 4.0
    attention_blocks: int | tuple[int, int] = 0

    def __post_init__(self) -> None:
        if len(self.widths) != 4 or len(self.depths) != 4:
            raise ModelError(
                f"an architecture has 4 stages, but widths={self.widths} and depths={self.depths} "
                f"describe {len(self.widths)} and {len(self.depths)}."
            )
        if min(self.widths) < 2 or min(self.depths) < 0 or self.widths[0] % 2:
            raise ModelError(
                f"widths must be positive, the first one even, and depths not negative; "
                f"got widths={self.widths}, depths={self.depths}."
            )
        for late, count in enumerate(self.late_attention()):
            if not 0 <= count <= self.depths[2 + late]:
                raise ModelError(
                    f"stage {3 + late} has {self.depths[2 + late]} blocks, so that many at most can have "
                    f"attention; got attention_blocks={self.attention_blocks}."
                )
        for stage, ratios in enumerate(self.block_ratios()):
            if len(ratios) != self.depths[stage] or any(int(self.widths[stage] * r) < 1 for r in ratios):
                raise ModelError(
                    f"stage {stage + 1} needs {self.depths[stage]} expansion ratios that leave at least one "
                    f"hidden channel; got {ratios}."
                )

    def late_attention(self) -> tuple[int, int]:
        """The number of attention blocks of stage 3 and of stage 4."""
        if isinstance(self.attention_blocks, int):
            return min(self.attention_blocks, self.depths[2]), min(self.attention_blocks, self.depths[3])
        return self.attention_blocks[0], self.attention_blocks[1]

    def block_ratios(self) -> tuple[tuple[float, ...], ...]:
        """The expansion ratio of every block, by stage."""
        stages = self.ratios if isinstance(self.ratios, Sequence) else (self.ratios,) * 4
        if len(stages) != 4:
            raise ModelError(
                f"ratios must be one number or one entry for each of 4 stages; got {self.ratios}."
            )
        return tuple(
            tuple(r) if isinstance(r, Sequence) else (r,) * depth
            for r, depth in zip(stages, self.depths, strict=True)
        )


VARIANTS: dict[str, Architecture] = {
    "efficientformerv2_s0": Architecture(
        (32, 48, 96, 176), (2, 2, 6, 4), (4, 4, (4, 3, 3, 3, 4, 4), (4, 3, 3, 4)), 2
    ),
    "efficientformerv2_s1": Architecture(
        (32, 48, 120, 224), (3, 3, 9, 6), (4, 4, (4, 4, 3, 3, 3, 3, 4, 4, 4), (4, 4, 3, 3, 4, 4)), 2
    ),
    "efficientformerv2_s2": Architecture(
        (32, 64, 144, 288),
        (4, 4, 12, 8),
        (4, 4, (4, 4, *(3,) * 6, 4, 4, 4, 4), (4, 4, 3, 3, 3, 3, 4, 4)),
        4,
    ),
    "efficientformerv2_l": Architecture(
        (40, 80, 192, 384),
        (5, 5, 15, 10),
        (4, 4, (4, 4, 4, 4, *(3,) * 7, 4, 4, 4, 4), (4, 4, 4, 3, 3, 3, 3, 4, 4, 4)),
        6,
    ),
}


class BlockLayer(nn.Module):
    """x + ls1(token_mixer(x)) where there is attention, then x + ls2(mlp(x)). x, y: (N, channels, H, W)."""

    def __init__(
        self, channels: int, hidden: int, attention: AttentionLayer | None, layer_scale_init: float | None
    ) -> None:
        super().__init__()
        self.token_mixer = attention
        self.ls1 = layer_scale(channels, layer_scale_init) if attention is not None else None
        self.mlp = FFNLayer(channels, hidden)
        self.ls2 = layer_scale(channels, layer_scale_init)

    def forward(self, x: Tensor) -> Tensor:
        if self.token_mixer is not None and self.ls1 is not None:
            x = x + self.ls1(self.token_mixer(x))
        y: Tensor = x + self.ls2(self.mlp(x))
        return y


class StageLayer(nn.Module):
    """A step down, if any, and the blocks behind it."""

    def __init__(self, downsample: nn.Module, stage_blocks: Sequence[BlockLayer]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*stage_blocks)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(self.downsample(x))
        return y


class EfficientFormerV2(nn.Module):
    """The whole model, at any size.

    img_size: rows and columns of the images that the attention bias is made for; one number for both.
    num_classes: 0 leaves out the classifiers and returns the pooled features (N, widths[3]).
    distillation: a second classifier, ``head_dist``; the logits are the mean of both.
    features_only: no head; the outputs of the four stages are returned as a list.
    feature_norms: with features_only, which outputs have a BatchNorm of their own.
    resize_bias: images of any size; the bias is resized as in the official dense-prediction backbones.
    layer_scale_init: None leaves the layer scales out.

    Input (N, in_channels, H, W) in the dtype of the weights. Raises InputError for another rank or channel
    count, ResolutionError where the bias does not fit and resize_bias is False.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        img_size: int | tuple[int, int] = 224,
        in_channels: int = 3,
        num_classes: int = 1000,
        distillation: bool = True,
        features_only: bool = False,
        feature_norms: tuple[bool, bool, bool, bool] | None = None,
        resize_bias: bool = False,
        layer_scale_init: float | None = 1e-5,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.distillation = distillation
        self.features_only = features_only
        self.resize_bias = resize_bias
        if min(self.img_size) < 1 or in_channels < 1 or num_classes < 0:
            raise ModelError(
                f"img_size and in_channels must be positive and num_classes not negative; "
                f"got img_size={img_size}, in_channels={in_channels}, num_classes={num_classes}."
            )
        widths = architecture.widths
        self.stem = StemLayer(in_channels, widths[0])
        self.stages = nn.Sequential(*(self._stage(i, layer_scale_init) for i in range(4)))
        if features_only:
            norms = feature_norms or (False,) * 4
            self.feature_norms = nn.ModuleList(
                nn.BatchNorm2d(width) if on else nn.Identity()
                for width, on in zip(widths, norms, strict=True)
            )
        else:
            self.norm = nn.BatchNorm2d(widths[3])
            self.head = nn.Linear(widths[3], num_classes) if num_classes else nn.Identity()
            if distillation:
                self.head_dist = nn.Linear(widths[3], num_classes) if num_classes else nn.Identity()
        self._init_classifiers()

    def _stage(self, index: int, layer_scale_init: float | None) -> StageLayer:
        arch = self.architecture
        width = arch.widths[index]

        def resolution(stage: int) -> tuple[int, int]:
            step = 4 * 2**stage
            return -(-self.img_size[0] // step), -(-self.img_size[1] // step)

        downsample: nn.Module = nn.Identity()
        if index == 3:
            downsample = AttentionDownsampleLayer(
                arch.widths[2], width, resolution(2), resize_bias=self.resize_bias
            )
        elif index > 0:
            downsample = ConvDownsampleLayer(arch.widths[index - 1], width)
        first_attention = arch.depths[index] - (arch.late_attention()[index - 2] if index >= 2 else 0)
        stage_blocks = []
        for i, ratio in enumerate(arch.block_ratios()[index]):
            attention = None
            if i >= first_attention:
                attention = AttentionLayer(
                    width, resolution(index), stride=2 if index == 2 else 1, resize_bias=self.resize_bias
                )
            stage_blocks.append(BlockLayer(width, int(width * ratio), attention, layer_scale_init))
        return StageLayer(downsample, stage_blocks)

    def _init_classifiers(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def classifiers(self) -> list[nn.Module]:
        """The classifier, and the one for distillation where the model has it."""
        return [self.head, self.head_dist] if self.distillation else [self.head]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise InputError(
                f"the model takes images (N, {self.in_channels}, H, W), but got {tuple(x.shape)}."
            )
        x = self.stem(x)
        features: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        if self.features_only:
            return [norm(f) for norm, f in zip(self.feature_norms, features, strict=True)]
        return classify(x, self.norm, self.classifiers())


def create_model(
    name: str,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    pretrained: bool = False,
    num_classes: int = 1000,
    img_size: int | tuple[int, int] | None = None,
    features_only: bool = False,
    in_channels: int = 3,
    distillation: bool = True,
    weights: str = "auto",
) -> EfficientFormerV2:
    """One of the four published variants (see VARIANTS), in eval mode.

    checkpoint: a .pth or .safetensors file with timm's or the official keys (``effv2_kernels.checkpoint``).
    pretrained: fetch timm's published weights with huggingface_hub instead.
    img_size: the size of the images; None is 224, or the training size of the checkpoint's backbone where
        that is an official detection or segmentation backbone (with features_only), which takes any size.
    weights: which weights of a checkpoint to take. Training scripts keep an average of the weights (EMA, SWA)
        beside the raw ones: "auto" takes the average where there is one, as timm does, and the log of
        ``effv2_kernels.checkpoint`` says what was taken; "average" and "raw" take that, or raise.

    Raises UnknownNameError for another name and CheckpointError for a file that does not fit, or without the
    weights that are asked for.
    """
    if name not in VARIANTS:
        raise UnknownNameError.of("model", name, VARIANTS)
    if checkpoint is not None and pretrained:
        raise ModelError("give either checkpoint=... or pretrained=True, not both.")
    given = None
    if checkpoint is not None:
        given = read(checkpoint, weights)
    elif pretrained:
        given = read_pretrained(name, weights)
    elif weights != "auto":
        raise ModelError(f"weights={weights!r} chooses among those of a checkpoint: give checkpoint=... too.")
    backbone = given if features_only else None
    if img_size is None:
        img_size = backbone.img_size() if backbone is not None and backbone.resize_bias else 224
    model = EfficientFormerV2(
        VARIANTS[name],
        img_size=img_size,
        in_channels=in_channels,
        num_classes=num_classes,
        distillation=distillation,
        features_only=features_only,
        feature_norms=None if backbone is None else backbone.feature_norms(),
        resize_bias=backbone is not None and backbone.resize_bias,
    )
    if given is not None:
        load_into(model, given)
    return model.eval()
