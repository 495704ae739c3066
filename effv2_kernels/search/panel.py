"""A picture of one panel, as PNG or SVG by the name of the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from effv2_kernels.errors import SearchError, UnavailableError


@contextmanager
def panel(path: Path, width: float, height: float) -> Iterator[Any]:
    """One panel, in inches, that is written to the file at the end.

    Raises UnavailableError without matplotlib, SearchError where the file cannot be written.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnavailableError(
            f"pictures need {error.name}: pip install 'effv2_kernels[search]', or do without them."
        ) from error
    # The same figures give the same file, and text stays text.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "effv2"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        yield axes
        try:
            figure.savefig(
                path, dpi=150, facecolor="white", metadata={"Date": None} if path.suffix == ".svg" else None
            )
        except (OSError, ValueError) as error:
            raise SearchError(f"the picture '{path}' cannot be written: {error}.") from error
