"""The last norm of a classifier, kept beside the head that it is folded into.

``forward_features`` and ``forward_head`` of timm's models meet behind that norm, a place that the folded
network does not have.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from effv2_kernels.errors import InputError, ModelError


@dataclass(frozen=True, eq=False)
class Tail:
    """y = scale * x + shift for each channel. scale, shift: (channels,) float32.

    lossy: the scale is 0 somewhere, so that a classifier behind it cannot be told from the folded one.
    """

    scale: Tensor
    shift: Tensor
    lossy: bool

    @classmethod
    def of(cls, scale: Tensor, shift: Tensor) -> Tail:
        """The norm with this scale and shift."""
        return cls(scale, shift, bool((scale == 0).any()))

    def moved(self, device: torch.device) -> Tail:
        """The same on another device; on the meta device it stays what it is, for there it would be lost."""
        if device.type == "meta":
            return self
        return Tail(self.scale.to(device), self.shift.to(device), self.lossy)

    def normalised(self, x: Tensor) -> Tensor:
        """The norm of a map x: (N, channels, H, W)."""
        return torch.addcmul(self._of(self.shift, x), x, self._of(self.scale, x))

    def pooled(self, x: Tensor) -> Tensor:
        """The mean over rows and columns (N, channels) of a map behind the norm."""
        fits = isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] == self.scale.numel()
        if not fits or not x.is_floating_point():
            given = f"{x.dtype} of {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(
                f"forward_head takes what forward_features returns, (N, {self.scale.numel()}, H, W), but got "
                f"{given}."
            )
        return x.mean(dim=(2, 3))

    def logits(self, pooled: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The classifier on pooled: (N, channels). weight, bias: of the head that the norm is folded into."""
        if self.lossy:
            raise ModelError(
                "forward_head is not known for this model: the scale of its last norm is 0 for some "
                "channels, and the classifier's weights of these are lost. Call the model itself, or "
                "forward_head(x, pre_logits=True)."
            )
        raw = (pooled - self.shift.to(pooled)) / self.scale.to(pooled)
        return F.linear(raw, weight.to(pooled), bias.to(pooled))

    def _of(self, values: Tensor, x: Tensor) -> Tensor:
        return values.to(x).view(-1, 1, 1)
