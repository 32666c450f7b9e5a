"""What the tests share: a thread or two for each library, and small networks made once."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from sppdet.features.backbones import Backbone, load_backbone

torch.set_num_threads(2)
cv2.setNumThreads(1)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def tiny() -> Backbone:
    return load_backbone("tiny", "none")
