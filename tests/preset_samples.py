"""Settings, sets and words of the command line that tests of presets and forecasts share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from evaluation_samples import make_image
from sppdet.config import Config
from sppdet.io.settings import validate
from sppdet.types import Dataset

FAST = {"scales": [480], "head": None, "finetune": None}
TUNED: dict[str, Any] = {
    "scales": [320],
    "head": {"widths": [32]},
    "finetune": {"layers": "all", "batches": 1000, "image_scales": [256, 384]},
}
DATA = {"root": ".", "train": "train", "test": "test"}


def config(**settings: Any) -> Config:
    return validate({"data": DATA, **settings}, "test", Config)


def load(tuned: bool) -> Config:
    return config(**(TUNED if tuned else FAST))


def dataset(count: int, *, side: float, width: int = 640, height: int = 480) -> Dataset:
    """`count` images with one square object each."""
    made = make_image("a", [(1, (10, 10, 10 + side, 10 + side))])
    images = [replace(made, id=f"{n}", width=width, height=height) for n in range(count)]
    return Dataset("s", ("a",), tuple(images))


SMALL = [
    *(
        "backbone={name: tiny, weights: none, stages: auto}",
        "features={canonical_size: 80}",
        "workers=1",
    ),
    *("proposals={image_width: 200, max_boxes: 150, min_size: 12}", "scales=[120]"),
]


def small(*more: str) -> list[str]:
    return [word for item in (*SMALL, *more) for word in ("--set", item)]
