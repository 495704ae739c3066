"""MobileNetV2 in plain PyTorch.

The state-dict keys are those of torchvision's model, so that its weights load as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from effv2_kernels.errors import InputError, ModelError
from effv2_kernels.families.mobilenet_v2.architecture import Architecture
from effv2_kernels.inputs import whole_number


class ConvNormReLU6(nn.Sequential):
    """y = ReLU6(BatchNorm(conv(x))), without a bias, with padding ``kernel // 2``.

    x: (N, in_channels, H, W); y: (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU6(inplace=True),
        )


class InvertedResidual(nn.Module):
    """1x1 if there is expansion, depthwise 3x3, 1x1; plus x at stride 1 with as many channels out as in.

    x: (N, in_channels, H, W); y: (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.use_res_connect = stride == 1 and in_channels == out_channels
        widen = [ConvNormReLU6(in_channels, hidden, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *widen,
            ConvNormReLU6(hidden, hidden, 3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.use_res_connect else y


class MobileNetV2(nn.Module):
    """The whole model, for images of any size.

    num_classes: 0 leaves out the classifier and returns the pooled features (N, features).
    features_only: no last convolution and no classifier; the last map before each step down and the last one
        are returned as a list, as by timm.

    Input (N, in_channels, H, W) in the dtype of the weights. Raises InputError for another rank or channel
    count.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        in_channels: int = 3,
        num_classes: int = 1000,
        features_only: bool = False,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        in_channels = whole_number(in_channels, "in_channels")
        num_classes = whole_number(num_classes, "num_classes")
        if in_channels < 1 or num_classes < 0:
            raise ModelError(
                f"in_channels must be positive and num_classes not negative; got in_channels={in_channels}, "
                f"num_classes={num_classes}."
            )
        self.architecture = architecture
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.features_only = features_only
        layers: list[nn.Module] = [ConvNormReLU6(in_channels, architecture.stem, 3, stride=2)]
        channels = architecture.stem
        for block in architecture.blocks():
            layers.append(
                InvertedResidual(channels, block.channels, stride=block.stride, expansion=block.expansion)
            )
            channels = block.channels
        if not features_only:
            layers.append(ConvNormReLU6(channels, architecture.features, 1))
        self.features = nn.Sequential(*layers)
        if not features_only:
            classifier = nn.Linear(architecture.features, num_classes) if num_classes else nn.Identity()
            self.classifier = nn.Sequential(nn.Dropout(dropout), classifier)
        # Indices of the features that are returned.
        self.returned = architecture.returned() if features_only else ()
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise InputError(
                f"the model takes images (N, {self.in_channels}, H, W), but got {tuple(x.shape)}."
            )
        maps: list[Tensor] = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.returned:
                maps.append(x)
        if self.features_only:
            return maps
        logits: Tensor = self.classifier(torch.flatten(nn.functional.adaptive_avg_pool2d(x, (1, 1)), 1))
        return logits
