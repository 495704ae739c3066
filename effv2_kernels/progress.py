"""A progress bar for what takes long."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from effv2_kernels.engine import Progress


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Yields progress(what is done now, share of the work that is done): a bar on stderr.

    Without rich or a terminal it shows nothing.
    """
    try:
        from rich import progress
        from rich.console import Console
    except ImportError:
        yield lambda what, share: None
        return
    columns = (
        progress.TextColumn("{task.description:24}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with progress.Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("starting", total=1.0)

        def show(what: str, share: float) -> None:
            bar.update(task, description=what, completed=share)

        yield show
