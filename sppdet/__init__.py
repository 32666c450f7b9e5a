"""sppdet: an SPP-net object detector.

detector = sppdet.Detector.load("runs/mine")
detections = detector("image.jpg")

The names in `__all__` are loaded on first use: `import sppdet` is fast, and the command line can set
environment variables before torch is imported. Importing any module of this package leaves the state
of the process alone: environment variables and the libraries' numbers of threads.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sppdet.version import __version__

if TYPE_CHECKING:
    from sppdet.boxes import box_iou, nms
    from sppdet.detections import Detections
    from sppdet.errors import SppdetError
    from sppdet.features.pyramid import SpatialPyramid
    from sppdet.features.spp import spp_windows
    from sppdet.io.settings import load_config
    from sppdet.proposals.search import selective_search
    from sppdet.stages.combined import CombinedDetector
    from sppdet.stages.detector import Detector
    from sppdet.stages.train import train

_MODULE_OF = {
    "CombinedDetector": "sppdet.stages.combined",
    "Detections": "sppdet.detections",
    "Detector": "sppdet.stages.detector",
    "SpatialPyramid": "sppdet.features.pyramid",
    "SppdetError": "sppdet.errors",
    "box_iou": "sppdet.boxes",
    "load_config": "sppdet.io.settings",
    "nms": "sppdet.boxes",
    "selective_search": "sppdet.proposals.search",
    "spp_windows": "sppdet.features.spp",
    "train": "sppdet.stages.train",
}

__all__ = [
    "CombinedDetector",
    "Detections",
    "Detector",
    "SpatialPyramid",
    "SppdetError",
    "__version__",
    "box_iou",
    "load_config",
    "nms",
    "selective_search",
    "spp_windows",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value  # later uses bypass this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
