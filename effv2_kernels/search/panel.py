"""A picture of one panel, or of a few side by side, as PNG or SVG by the name of the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from effv2_kernels import replacing
from effv2_kernels.errors import SearchError, UnavailableError


@contextmanager
def panel(path: Path, width: float, height: float) -> Iterator[Any]:
    """One panel, in inches, that is written to the file at the end. Raises as ``panels``."""
    with panels(path, width, height, 1) as (axes,):
        yield axes


@contextmanager
def panels(path: Path, width: float, height: float, count: int) -> Iterator[list[Any]]:
    """``count`` panels of one vertical scale, in inches together, that are written to the file at last.

    Raises UnavailableError without matplotlib, SearchError where the file cannot be written.
    """
    check(path)
    import matplotlib
    from matplotlib.figure import Figure

    # The same figures give the same file, and text stays text.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "effv2"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        found = list(figure.subplots(1, count, sharey=True, squeeze=False).flat)
        for axes in found:
            axes.spines[["top", "right"]].set_visible(False)
        yield found
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
        try:
            figure.savefig(path, dpi=150, facecolor="white", metadata=metadata)
        except (OSError, ValueError) as error:
            raise SearchError(f"the picture '{path}' cannot be written: {error}.") from error


def check(path: Path) -> None:
    """Raise as ``panels`` where a picture cannot be written, before the work that it is to show."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise UnavailableError(
            f"pictures need {error.name}: pip install 'effv2_kernels[search]', or do without them."
        ) from error
    if path.suffix.lower()[1:] not in FigureCanvasBase.get_supported_filetypes():
        raise SearchError(
            f"the picture '{path}' cannot be written: its name must end in .svg or .png, and it ends in "
            f"'{path.suffix}'."
        )
    try:
        replacing.require_writable(path)
    except OSError as error:
        raise SearchError(
            f"the picture '{path}' cannot be written: give a file in a folder that is there and can be "
            f"written."
        ) from error
