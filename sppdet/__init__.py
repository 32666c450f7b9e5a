"""sppdet: an SPP-net object detector.

detector = sppdet.Detector.load("runs/mine")
detections = detector("image.jpg")

Importing this package, or anything of it, changes no state of the process: no environment variable
and no library's number of threads. What is offered here is loaded when it is first used, so that the
command line can set variables before torch is imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sppdet.version import __version__

if TYPE_CHECKING:
    from sppdet.errors import SppdetError
    from sppdet.io.settings import load_config
    from sppdet.stages.detector import Detector
    from sppdet.stages.pipeline import train
    from sppdet.types import Detections

__all__ = ["Detections", "Detector", "SppdetError", "__version__", "load_config", "train"]

_MODULE_OF = {
    "Detections": "sppdet.types",
    "Detector": "sppdet.stages.detector",
    "SppdetError": "sppdet.errors",
    "load_config": "sppdet.io.settings",
    "train": "sppdet.stages.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value  # from now on without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
