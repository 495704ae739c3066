"""Look into a module of unknown origin, and refuse by path whatever is not as expected.

Every accessor either proves what it returns or raises ModelError with the path of the module and what
about it is unsupported, so that a reader reads like the structure that it recognises.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from effv2_kernels.errors import ModelError
from effv2_kernels.reference.activation import activate

# Class names of BatchNorm with fixed statistics (torchvision, timm, detectron2): no common base class.
_FROZEN_NORMS = ("FrozenBatchNorm2d", "FrozenBatchNormAct2d")


_FUSED = (
    "The model's convolutions and norms were fused already; give the model as it was before: optimize() "
    "fuses them, in float64."
)


class Affine(NamedTuple):
    """A linear map or convolution followed by a factor for each output: factor * weight, and bias.

    The factor is kept apart until the end, so that folding is one pass over the weights.
    """

    weight: Tensor  # (out, ...) on the CPU, as the module holds it
    factor: Tensor  # (out,) float64
    bias: Tensor  # (out,) float64, not to be multiplied by factor

    def scaled(self, factor: float | Tensor | None) -> Affine:
        """The map followed by one more factor, one for all outputs or one for each; None is 1."""
        if factor is None:
            return self
        return Affine(self.weight, self.factor * factor, self.bias * factor)

    def folded(self) -> Tensor:
        """factor * weight, (out, ...) float64."""
        return self.weight * self.factor.view(-1, *[1] * (self.weight.ndim - 1))


class Normalisation(NamedTuple):
    """y = scale * x + shift per channel, in float64: a BatchNorm in eval mode."""

    scale: Tensor
    shift: Tensor


def unchanged(channels: int) -> Normalisation:
    """No normalisation: y = x for so many channels."""
    one = torch.ones(channels, dtype=torch.float64, device="cpu")
    return Normalisation(one, torch.zeros_like(one))


class Node:
    """A module and its path inside the network that is being read."""

    def __init__(self, module: nn.Module, path: str = "") -> None:
        self.module = module
        self.path = path

    def error(self, reason: str) -> ModelError:
        """The error to raise for this module."""
        where = f"'{self.path}'" if self.path else "the model"
        return ModelError(f"{where} ({type(self.module).__name__}) {reason}")

    def find(self, path: str) -> Node | None:
        """The submodule at a dotted path, or None where there is none (or the attribute is None)."""
        module: Any = self.module
        for name in path.split("."):
            module = getattr(module, name, None)
            if not isinstance(module, nn.Module):
                return None
        return Node(module, f"{self.path}.{path}" if self.path else path)

    def __getitem__(self, path: str) -> Node:
        node = self.find(path)
        if node is None:
            fused = f" {_FUSED}" if path.endswith("bn") and "conv" in self.module._modules else ""
            raise self.error(f"has no submodule '{path}', which is expected there.{fused}")
        return node

    def children(self) -> list[Node]:
        """The direct submodules, in order; one that stands in two places comes twice."""
        prefix = f"{self.path}." if self.path else ""
        return [
            Node(child, prefix + name) for name, child in self.module._modules.items() if child is not None
        ]

    def value(self, name: str) -> Any:
        """A plain attribute."""
        if not hasattr(self.module, name):
            raise self.error(f"has no attribute '{name}', which it needs.")
        return getattr(self.module, name)

    def integer(self, name: str) -> int:
        """A positive integer attribute."""
        value = self.value(name)
        if not isinstance(value, int) or value < 1:
            raise self.error(f"has {name}={value!r}; expected a positive integer.")
        return value

    def grid(self, name: str) -> tuple[int, int]:
        """A resolution: an integer for a square, or (rows, cols)."""
        value = self.value(name)
        pair = (value, value) if isinstance(value, int) else tuple(value)
        if len(pair) != 2 or not all(isinstance(v, int) and v > 0 for v in pair):
            raise self.error(f"has {name}={value!r}; expected (rows, cols).")
        return pair[0], pair[1]

    def tensor(self, name: str) -> Tensor:
        """A parameter or buffer in float64 on the CPU, detached."""
        return self.raw_tensor(name).to(torch.float64)

    def raw_tensor(self, name: str) -> Tensor:
        """A parameter or buffer in its own dtype on the CPU, detached."""
        value = self.value(name)
        if not isinstance(value, Tensor):
            raise self.error(f"has no tensor '{name}', which it needs.")
        if value.is_meta:
            raise self.error(f"holds no data: its '{name}' is on the meta device; load the weights first.")
        return value.detach().to("cpu")


def sequence(node: Node, length: int) -> list[Node]:
    """The children of an nn.Sequential of exactly ``length`` modules."""
    if not isinstance(node.module, nn.Sequential) or len(node.module) != length:
        raise node.error(f"is unsupported: expected an nn.Sequential of {length} modules.")
    return node.children()


def convolution(node: Node, *, kernel: int = 1, stride: int = 1, depthwise: bool = False) -> Affine:
    """A Conv2d of exactly this kind, with padding ``kernel // 2``; weight (out, in / groups, k, k)."""
    conv = node.module
    if not isinstance(conv, nn.Conv2d) or type(conv)._conv_forward is not nn.Conv2d._conv_forward:
        raise node.error(f"is unsupported: expected a plain nn.Conv2d.{_quantised(conv)}")
    if type(conv).forward is not nn.Conv2d.forward:
        raise node.error("is unsupported: it overrides the forward of nn.Conv2d.")
    groups = conv.in_channels if depthwise else 1
    expected = {
        "kernel_size": (kernel, kernel),
        "stride": (stride, stride),
        "padding": (kernel // 2, kernel // 2),
        "dilation": (1, 1),
        "groups": groups,
        "padding_mode": "zeros",
    }
    for name, value in expected.items():
        given = getattr(conv, name)
        if given != value and not (name == "padding" and given == "same" and stride == 1):
            raise node.error(f"is unsupported: {name}={given!r}, expected {value!r}.")
    if depthwise and conv.out_channels != conv.in_channels:
        raise node.error(
            f"is unsupported: {conv.in_channels} to {conv.out_channels} channels, but a depthwise "
            f"convolution here keeps their number."
        )
    return _affine(node, conv.out_channels)


def _quantised(module: nn.Module) -> str:
    if not type(module).__module__.startswith(("torch.ao.", "torch.nn.quantized", "torch.nn.qat")):
        return ""
    return " It is quantised: give the model as it was before that."


def linear(node: Node) -> Affine:
    """An nn.Linear."""
    layer = node.module
    if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward:
        raise node.error(f"is unsupported: expected a plain nn.Linear.{_quantised(layer)}")
    return _affine(node, layer.out_features)


def _affine(node: Node, outputs: int) -> Affine:
    one = torch.ones(outputs, dtype=torch.float64, device="cpu")
    bias = torch.zeros_like(one) if node.value("bias") is None else node.tensor("bias")
    return Affine(node.raw_tensor("weight"), one, bias)


def batch_norm(node: Node, *, activation: str = "none") -> Normalisation:
    """A BatchNorm in eval mode with running statistics (or one with fixed statistics).

    ``activation``: what the module applies as well (timm's fused class), which is checked.
    """
    norm = node.module
    batch = isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm))
    if isinstance(norm, nn.Identity):
        raise node.error(f"stands where an nn.BatchNorm2d belongs. {_FUSED}")
    if not batch and type(norm).__name__ not in _FROZEN_NORMS:
        raise node.error("is unsupported: expected an nn.BatchNorm2d.")
    for child in node.children():
        if activation == "none" or not child.path.endswith(".act"):
            require_nothing(child)
    if activation != "none":
        require_activation(node["act"], activation)
        if type(norm).forward in (nn.SyncBatchNorm.forward, nn.BatchNorm2d.forward):
            raise node.error(
                "holds an activation that it does not apply: torch.nn.SyncBatchNorm.convert_sync_batchnorm "
                "drops it from timm's norms. Convert the model with timm.layers.convert_sync_batchnorm "
                "instead, or give the model as it was before."
            )
    if batch and norm.training:
        raise node.error("is in training mode: call model.eval() first.")
    if getattr(norm, "running_mean", None) is None or getattr(norm, "running_var", None) is None:
        raise node.error("is unsupported: it has no running statistics, so its result depends on the batch.")
    deviation = (node.tensor("running_var") + float(node.value("eps"))).sqrt()
    weight = node.tensor("weight") if norm.weight is not None else torch.ones_like(deviation)
    bias = node.tensor("bias") if norm.bias is not None else torch.zeros_like(deviation)
    scale = weight / deviation
    return Normalisation(scale, bias - node.tensor("running_mean") * scale)


def normalised(affine: Affine, norm: Normalisation | None) -> Affine:
    """The map followed by the normalisation (None: by nothing), as one map."""
    if norm is None:
        return affine
    scaled = affine.scaled(norm.scale)
    return scaled._replace(bias=scaled.bias + norm.shift)


_SPELT = {"gelu": "the exact GELU, x * Phi(x)", "relu6": "ReLU6, min(max(x, 0), 6)"}


def require_activation(node: Node, name: str) -> None:
    """Refuse every activation but the one of that name, told by its values: classes vary."""
    expected = _SPELT.get(name, name)
    if any(True for _ in node.module.parameters()):
        raise node.error(f"is unsupported: expected {expected}, which has no parameters.")
    probe = torch.linspace(-9, 9, 145, dtype=torch.float64, device="cpu")
    # Of GELU the tanh form differs by up to 4.7e-4, the sigmoid form by 2e-2; float64 rounding by 1e-15.
    # Not by a call, which hooks on all modules would count.
    found = node.module.forward(probe.clone())
    if not torch.allclose(found, activate(probe, name), rtol=0, atol=1e-7):
        raise node.error(f"is unsupported: expected {expected}.")


def require_gelu(node: Node) -> None:
    """Refuse every activation but the exact GELU."""
    require_activation(node, "gelu")


def require_nothing(node: Node | None) -> None:
    """Refuse a module that does anything in eval mode."""
    if node is None or isinstance(node.module, nn.Identity):
        return
    if isinstance(node.module, nn.Sequential) and len(node.module) == 0:
        return
    dropout = isinstance(node.module, (nn.Dropout, nn.Dropout2d)) or hasattr(node.module, "drop_prob")
    if not dropout:
        raise node.error("is unsupported: nothing that changes its input may stand here.")
    if node.module.training:
        raise node.error("is in training mode: call model.eval() first.")


def all_finite(value: Tensor) -> bool:
    """Whether no element is NaN or infinite; by the extremes, which takes a fifth of torch.isfinite."""
    if value.numel() == 0:
        return True
    low, high = torch.aminmax(value.detach())
    return math.isfinite(float(low)) and math.isfinite(float(high))


def _drop_rate(module: nn.Module) -> float:
    return float(getattr(module, "drop_prob", None) or getattr(module, "p", None) or 0.0)


def named_modules(node: Node) -> Iterator[Node]:
    """A module and all that are inside, each with its path."""
    prefix = f"{node.path}." if node.path else ""
    for name, module in node.module.named_modules():
        yield Node(module, prefix + name if name else node.path)


def require_usable(node: Node) -> None:
    """Refuse a module in training mode, with hooks, or with weights that are not finite.

    BatchNorm, dropout and stochastic depth inside count as well as the module itself; other submodules'
    flags change nothing.
    """
    if node.module.training:
        raise node.error("is in training mode: call model.eval() first.")
    for part in named_modules(node):
        module = part.module
        random = isinstance(module, nn.modules.dropout._DropoutNd) or hasattr(module, "drop_prob")
        if module.training and (
            isinstance(module, nn.modules.batchnorm._NormBase) or (random and _drop_rate(module) > 0)
        ):
            raise part.error("is in training mode: call model.eval() first.")
        if module._forward_hooks or module._forward_pre_hooks:
            raise part.error(
                "has forward hooks, which would no longer run: remove them first (for weight_norm and "
                "pruning: make them permanent)."
            )
    prefix = f"{node.path}." if node.path else ""
    for kind, named in (
        ("parameter", node.module.named_parameters()),
        ("buffer", node.module.named_buffers()),
    ):
        for name, value in named:
            if value.is_meta:
                raise ModelError(
                    f"{kind} '{prefix}{name}' holds no data (meta device): load the weights first."
                )
            if value.is_floating_point() and not all_finite(value):
                bad = int((~torch.isfinite(value)).sum())
                raise ModelError(
                    f"{kind} '{prefix}{name}' holds {bad} values that are not finite (NaN or infinity): "
                    f"check the checkpoint and the training."
                )
