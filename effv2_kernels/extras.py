"""Packages of an extra: what needs them says which are missing, and how they are installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from effv2_kernels.errors import UnavailableError


def require(what: str, packages: Sequence[str], extra: str) -> None:
    """Raise UnavailableError where one of the packages is missing. what: needs them, e.g. "training"."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UnavailableError(
            f"{what} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            f"installed: pip install 'effv2_kernels[{extra}]'."
        )
