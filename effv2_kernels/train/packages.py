"""What training needs beside torch and numpy."""

from __future__ import annotations

from effv2_kernels import extras

PACKAGES = ("timm", "torchvision", "torchmetrics", "tensorboard", "matplotlib", "rich", "PIL", "safetensors")


def require() -> None:
    """Raise UnavailableError where one of the packages is missing."""
    extras.require("training", PACKAGES, "search")
