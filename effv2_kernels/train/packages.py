"""What training needs beside torch and numpy."""

from __future__ import annotations

from importlib.util import find_spec

from effv2_kernels.errors import UnavailableError

PACKAGES = ("timm", "torchvision", "torchmetrics", "tensorboard", "matplotlib", "rich", "PIL", "safetensors")


def require() -> None:
    """Raise UnavailableError where one of the packages is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UnavailableError(
            f"training needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            f"installed: pip install 'effv2_kernels[search]'."
        )
