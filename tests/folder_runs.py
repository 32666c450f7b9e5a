"""Detection in folders by a little training: what comes of it and what is said."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from runs import printed_to
from sppdet.folders.folder import FolderResult, detect_folder
from sppdet.folders.formats import FORMATS, Format
from sppdet.stages.detector import Detector

LEAST = -1.2  # a score that this little training reaches
# one drawing, one annotation an image
OLD = [kind for kind in FORMATS if kind not in ("yolo", "crops")]


def detect(
    detector: Detector, paths: Sequence[Path], out: Path, *, formats: Sequence[Format] = FORMATS
) -> tuple[FolderResult, str]:
    """Detect; returns what came of it and what was said."""
    said = io.StringIO()
    with printed_to(said):
        result = detect_folder(detector, paths, out, min_score=LEAST, formats=formats, workers=2)
    return result, said.getvalue()
