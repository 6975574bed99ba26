"""How far long work has come, for a person who watches: on standard error, and nothing where that is no terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """A bar, which is gone at the end.

    Args:
        what: What is going on.
        total: Steps in all; `None` where nobody knows.
    Returns:
        Function `advance(steps=1, note="")`; the note stands behind the bar.
    """
    if not sys.stderr.isatty():
        yield lambda steps=1, note="": None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(what, total=total, note="")

        def advance(steps: int = 1, note: str = "") -> None:
            bars.update(bar, advance=steps, note=note)

        yield advance
