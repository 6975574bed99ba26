"""A picture of the curves of a training."""

from __future__ import annotations

import csv
import os

import numpy as np

_TITLES = {
    "learning_rate": "Learning rate",
    "gradient_norm": "Gradient norm, before clipping",
    "tokens_per_second": "Real tokens per second",
    "padding_share": "Share of padding",
}
_LOGARITHMIC = ("gradient_norm", "loss_scale")
_FROM_ZERO = ("tokens_per_second", "padding_share", "skipped_steps")
_MOST_MARKS = 30  # points of a line that are marked, and ends of epochs that are drawn


def plot_training(csv: str | os.PathLike[str], png: str | os.PathLike[str]) -> None:
    """Draw the curves of a training over its steps: one panel a column, training and validation in one.

    Loss, metrics, tokens per second and share of padding are those of the epoch so far, so they may jump where an epoch
    begins; thin lines are the ends of epochs.

    Args:
        csv: Path of a file that `Monitor(csv=...)` wrote; the training may still run.
        png: Path of the picture. Other endings that matplotlib knows, such as `.svg` and `.pdf`, work too.
    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the file is none that `Monitor` wrote, or has no rows yet.
    Example:
    ```python
    classifier.fit(texts, labels, callbacks=[kbl.training.Monitor(csv="run.csv")])
    kbl.training.plot_training("run.csv", "run.png")
    ```
    """
    matplotlib = import_matplotlib()
    curves = _read(csv)
    steps, epochs = curves.pop("step"), curves.pop("epoch")
    panels = [name for name in curves if not name.startswith("val_") and np.isfinite(curves[name]).any()]
    width = 2 if len(panels) <= 6 else 3
    height = -(-len(panels) // width)
    figure = matplotlib.figure.Figure((5.5 * width, 3.2 * height + 0.4), layout="constrained")
    figure.suptitle(f"{os.path.basename(csv)}: step {steps[-1]:,.0f}, epoch {epochs[-1]:.0f}")
    axes = figure.subplots(height, width, squeeze=False).flatten()
    for name, ax in zip(panels, axes, strict=False):
        ax.set_title(_TITLES.get(name, name.replace("_", " ").capitalize()), fontsize="medium")
        ax.set_xlabel("Step")
        _draw_curves(ax, steps, epochs, {"training": curves[name], "validation": curves.get(f"val_{name}")})
        _draw_ends_of_epochs(ax, steps, epochs)
        _scale(ax, name, curves[name], matplotlib.ticker)
    for ax in axes[len(panels) :]:
        ax.remove()
    figure.savefig(png, dpi=150)


def import_matplotlib():
    """Return matplotlib. Of it no pyplot is needed, which keeps every figure and looks for a display."""
    try:
        import matplotlib.figure
        import matplotlib.ticker
    except ImportError as error:
        raise ImportError(
            "Curves are drawn by matplotlib, which is not installed. Run: pip install 'keras_bert_lib[plot]'"
        ) from error
    return matplotlib


def _read(path) -> dict[str, np.ndarray]:
    """Columns, float64 [rows]; NaN where a row has no value."""
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.DictReader(file)
        names = rows.fieldnames or []
        if not {"epoch", "step"} <= {*names}:
            raise ValueError(
                f"`csv` must be a file that kbl.training.Monitor wrote, with the columns epoch and step. Received: "
                f"{os.fspath(path)!r} with the columns: {', '.join(names) or 'none'}."
            )
        table = [[float(row[name] or "nan") for name in names] for row in rows]
    if not table:
        raise ValueError(f"{os.fspath(path)!r} has no rows yet. The first comes after `every` steps.")
    return dict(zip(names, np.array(table).T, strict=True))


def _draw_curves(ax, steps, epochs, curves) -> None:
    curves = {label: values for label, values in curves.items() if values is not None and np.isfinite(values).any()}
    for label, values in curves.items():
        known = np.isfinite(values)
        # No line leads from the mean of one epoch to the first steps of the next, unless it has one point an epoch.
        gaps = np.flatnonzero(np.diff(epochs[known])) + 1
        gaps = gaps if len(gaps) + 1 < known.sum() else []
        x, y = (np.insert(axis[known], gaps, np.nan) for axis in (steps, values))
        ax.plot(x, y, marker="o" if len(x) <= _MOST_MARKS else None, markersize=3.5, linewidth=1.4, label=label)
    if len(curves) > 1:
        ax.legend(fontsize="small")


def _draw_ends_of_epochs(ax, steps, epochs) -> None:
    ends = steps[np.flatnonzero(np.diff(epochs))]
    for step in ends if len(ends) <= _MOST_MARKS else ():
        ax.axvline(step, color="0.85", linewidth=0.8, zorder=0)


def _scale(ax, name, values, ticker) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="0.93")
    ax.set_axisbelow(True)
    ax.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    if name in _LOGARITHMIC and np.nanmin(values) > 0:
        ax.set_yscale("log")
    if name in _FROM_ZERO:
        ax.set_ylim(0, 1.1 * np.nanmax(values) or None)
    if name == "tokens_per_second":
        ax.yaxis.set_major_formatter(ticker.EngFormatter())
    if name == "padding_share":
        ax.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
