"""EfficientFormerV2 in plain PyTorch.

Li et al., "Rethinking Vision Transformers for MobileNet Size and Speed", arXiv 2212.08059.

The state-dict keys are those of timm's model, so that its weights load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from effv2_kernels.errors import InputError, ModelError
from effv2_kernels.families.efficientformer_v2.architecture import Architecture
from effv2_kernels.families.efficientformer_v2.layers import (
    AttentionDownsampleLayer,
    AttentionLayer,
    ConvDownsampleLayer,
    FFNLayer,
    StemLayer,
    layer_scale,
)


def classify(x: Tensor, norm: nn.Module, classifiers: Sequence[nn.Module]) -> Tensor:
    """The trainable form: mean of classifiers(mean_{H, W}(norm(x))). x: (N, channels, H, W); y: (N, classes).

    A function of the modules, because timm's keys hold them flat in the model: norm, head, head_dist.
    """
    pooled = norm(x).mean(dim=(2, 3))
    logits: Tensor = classifiers[0](pooled)
    for classifier in classifiers[1:]:
        logits = logits + classifier(pooled)
    return logits / len(classifiers)


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
