"""Figures as PNG files; the same figure gives the same bytes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from sppdet.runs.artifacts import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(*, width: float, height: float) -> Figure:
    """Make a figure of a size in inches, without pyplot, whose state is shared by all threads."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure atomically.

    Raises:
        ArtifactError: the file can't be written.
    """
    # Software: it would name the version of matplotlib
    with atomic_path(path) as temporary, warnings.catch_warnings():
        # a class's name in another script is drawn as boxes; its spelling is in the tables
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(temporary, format="png", metadata={"Software": None})
