"""sppdet: an SPP-net object detector.

detector = sppdet.Detector.load("runs/mine")
detections = detector("picture.jpg")
"""

from __future__ import annotations

import os

# torch's threads and those that search for proposals share the cores: one that waits must sleep,
# not spin. Both have to be set before torch is imported; a value of the user's stands.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# large pages for torch's tensors on Linux: without them fresh memory costs as much as the work in it
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from sppdet.config_file import load_config
from sppdet.detection.detector import Detector
from sppdet.errors import SppdetError
from sppdet.pipeline import train
from sppdet.types import Detections
from sppdet.version import __version__

__all__ = ["Detections", "Detector", "SppdetError", "__version__", "load_config", "train"]
