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
    drop_path,
    layer_scale,
)
from effv2_kernels.inputs import rows_and_columns, whole_number


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
    """x + ls1(token_mixer(x)) where there is attention, then x + ls2(mlp(x)). x, y: (N, channels, H, W).

    In training each of the two branches is dropped, by itself, at ``drop_path_rate``.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        attention: AttentionLayer | None,
        layer_scale_init: float | None,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.token_mixer = attention
        self.ls1 = layer_scale(channels, layer_scale_init) if attention is not None else None
        self.drop_path1 = drop_path(drop_path_rate) if attention is not None else None
        self.mlp = FFNLayer(channels, hidden)
        self.ls2 = layer_scale(channels, layer_scale_init)
        self.drop_path2 = drop_path(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        if self.token_mixer is not None and self.ls1 is not None and self.drop_path1 is not None:
            x = x + self.drop_path1(self.ls1(self.token_mixer(x)))
        y: Tensor = x + self.drop_path2(self.ls2(self.mlp(x)))
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
    drop_path_rate: of the last block in training; that of the others rises to it from 0, linearly.

    A fresh model is as timm's ``_init_weights`` and the official ``cls_init_weights`` leave theirs:
    classifiers truncated normal of deviation 0.02 with biases 0, attention biases 0, layer scales
    ``layer_scale_init``, BatchNorms 1 and 0, and convolutions as PyTorch makes them.

    Input (N, in_channels, H, W) in the dtype of the weights. Raises InputError for another rank or channel
    count, ResolutionError where the bias does not fit and resize_bias is False.
    """

    head: nn.Module
    head_dist: nn.Module

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
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.img_size = rows_and_columns(img_size, "img_size")
        in_channels = whole_number(in_channels, "in_channels")
        num_classes = whole_number(num_classes, "num_classes")
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.distillation = distillation
        self.features_only = features_only
        self.resize_bias = resize_bias
        self.distilled_training = False
        if not 0 <= drop_path_rate < 1:
            raise ModelError(f"drop_path_rate must be at least 0 and below 1, but got {drop_path_rate}.")
        if min(self.img_size) < 1 or in_channels < 1 or num_classes < 0:
            raise ModelError(
                f"img_size and in_channels must be positive and num_classes not negative; "
                f"got img_size={img_size}, in_channels={in_channels}, num_classes={num_classes}."
            )
        widths = architecture.widths
        self.stem = StemLayer(in_channels, widths[0])
        rates = architecture.drop_path_rates(drop_path_rate)
        self.stages = nn.Sequential(*(self._stage(i, layer_scale_init, rates[i]) for i in range(4)))
        if features_only:
            norms = feature_norms or (False,) * 4
            self.feature_norms = nn.ModuleList(
                nn.BatchNorm2d(width) if on else nn.Identity()
                for width, on in zip(widths, norms, strict=True)
            )
        else:
            self.norm = nn.BatchNorm2d(widths[3])
            self.reset_classifier(num_classes)

    def _stage(self, index: int, layer_scale_init: float | None, rates: Sequence[float]) -> StageLayer:
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
            stage_blocks.append(BlockLayer(width, int(width * ratio), attention, layer_scale_init, rates[i]))
        return StageLayer(downsample, stage_blocks)

    def reset_classifier(self, num_classes: int) -> None:
        """Make the classifiers anew, for another number of classes; 0 leaves them out."""
        self.num_classes = num_classes
        for name in ("head", "head_dist") if self.distillation else ("head",):
            made = nn.Linear(self.norm.num_features, num_classes) if num_classes else nn.Identity()
            setattr(self, name, made.to(self.norm.weight))
        for classifier in self.classifiers():
            if isinstance(classifier, nn.Linear):
                nn.init.trunc_normal_(classifier.weight, std=0.02)
                nn.init.zeros_(classifier.bias)

    def set_distilled_training(self, enable: bool = True) -> None:
        """As timm's: in training mode ``forward`` then returns the logits of both classifiers, unaveraged.

        Raises ModelError for a model without the second one.
        """
        if enable and not (self.distillation and self.num_classes and not self.features_only):
            raise ModelError(
                "distillation trains the second classifier, head_dist, which this model does not have: make "
                "it with distillation=True, num_classes above 0 and features_only=False."
            )
        self.distilled_training = enable

    def no_weight_decay(self) -> set[str]:
        """The parameters without weight decay, for timm's optimisers: the attention biases, as published."""
        return {name for name, _ in self.named_parameters() if name.endswith("attention_biases")}

    def classifiers(self) -> list[nn.Module]:
        """The classifier, and the one for distillation where the model has it."""
        return [self.head, self.head_dist] if self.distillation else [self.head]

    def forward(self, x: Tensor) -> Tensor | list[Tensor] | tuple[Tensor, Tensor]:
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
        if self.training and self.distilled_training:
            pooled = self.norm(x).mean(dim=(2, 3))
            return self.head(pooled), self.head_dist(pooled)
        return classify(x, self.norm, self.classifiers())
