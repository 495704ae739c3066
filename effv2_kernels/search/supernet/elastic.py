"""Layers of any width up to their largest: subnets share weights, the first channels of each.

As in slimmable networks (Yu et al., arXiv 1812.08928): a layer takes as many input channels as its input has,
and each width has a BatchNorm of its own, because the statistics of activations differ from width to width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn


class ElasticConv(nn.Module):
    """The first channels of a convolution, whose parameters it takes over.

    x: (N, inputs, H, W), at most as many inputs as the convolution has; y: (N, outputs, H', W'). A depthwise
    one has as many outputs as inputs.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight = conv.weight
        self.bias = cast(nn.Parameter, conv.bias)
        self.stride = conv.stride
        self.padding = cast("tuple[int, int]", conv.padding)
        self.depthwise = conv.groups > 1

    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        inputs = x.shape[1]
        if self.depthwise:
            weight, outputs, groups = self.weight[:inputs], inputs, inputs
        else:
            weight, groups = self.weight[:outputs, :inputs], 1
        return F.conv2d(x, weight, self.bias[:outputs], self.stride, self.padding, groups=groups)


class ElasticNorm(nn.ModuleDict):
    """One BatchNorm, affine parameters and statistics, for each configuration by its name; one is selected.

    stage: 0 to 3, the stage whose width alone says which is selected; None where the hidden channels of the
    FFN say it too.
    """

    def __init__(self, channels: Mapping[str, int], stage: int | None = None) -> None:
        super().__init__({key: nn.BatchNorm2d(count) for key, count in channels.items()})
        self.stage = stage
        self.key = next(reversed(list(channels)))

    def select(self, key: str) -> None:
        """Use the BatchNorm of this configuration from now on."""
        assert key in self
        self.key = key

    @property
    def selected(self) -> nn.BatchNorm2d:
        """The BatchNorm in use."""
        return cast(nn.BatchNorm2d, self[self.key])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.selected(x)
        return y


class ElasticConvNorm(nn.Module):
    """y = BatchNorm(conv(x)), with as many outputs as the selected BatchNorm has channels."""

    def __init__(self, conv: nn.Conv2d, norm: ElasticNorm) -> None:
        super().__init__()
        self.conv = ElasticConv(conv)
        self.bn = norm

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x, self.bn.selected.num_features))
        return y


class ElasticScale(nn.Module):
    """y = gamma * x, with as many of the factors as x: (N, channels, H, W) has channels."""

    def __init__(self, gamma: nn.Parameter) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma[: x.shape[1]].view(-1, 1, 1)


class ElasticLinear(nn.Module):
    """y = x · weightᵀ + bias of the first inputs. x: (N, inputs); y: (N, outputs), always all of them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight[:, : x.shape[1]], self.bias)
