"""Types of arrays, and checks of their shapes and dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]  # (N, 4) xyxy, original pixels, half-open
Labels = NDArray[np.int64]  # (N,) 1..K; 0 is background
Scores = NDArray[np.float32]  # (N,) SVM margins, not probabilities
Flags = NDArray[np.bool_]
ImageArray = NDArray[np.uint8]  # (H, W, 3) RGB


def check_array(array: NDArray[Any], name: str, shape: tuple[int | None, ...], dtype: type) -> None:
    """Raise ValueError unless an array has this dtype and shape; None accepts any length."""
    wrong_shape = array.ndim != len(shape) or any(
        want is not None and have != want for have, want in zip(array.shape, shape, strict=False)
    )
    if wrong_shape or array.dtype != np.dtype(dtype):
        want = tuple("N" if side is None else side for side in shape)
        raise ValueError(f"{name}: {array.dtype} {array.shape}, expected {np.dtype(dtype)} {want}")


def check_boxes(boxes: NDArray[Any], name: str = "boxes") -> None:
    """Raise ValueError unless `boxes` is a float32 (N, 4) array of finite boxes with area."""
    check_array(boxes, name, (None, 4), np.float32)
    bad = ~(
        np.isfinite(boxes).all(axis=1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    )
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(f"{name}, row {row}: {boxes[row].tolist()} has no area")
