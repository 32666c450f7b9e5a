"""HEIC and AVIF images, where OpenCV or an optional library reads them."""

from __future__ import annotations

import importlib.util
import io
from functools import cache

import cv2
import numpy as np

from sppdet.types import ImageArray

HEIF_SUFFIXES = (".heic", ".heif", ".hif")
AVIF_SUFFIXES = (".avif",)
INSTALL = "pip install 'sppdet[heic]'"


@cache
def reads_heif() -> bool:
    """Check that pillow-heif is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


@cache
def reads_avif() -> bool:
    """Check that OpenCV or Pillow reads AVIF here."""
    from PIL import features

    return bool(cv2.haveImageWriter("x.avif") or features.check("avif"))


def decode_heif(data: bytes) -> ImageArray | None:
    """Decode HEIC with pillow-heif: (H, W, 3) uint8 BGR, turned as it says; None if it is damaged.

    Raises:
        ImportError: pillow-heif isn't installed.
    """
    import pillow_heif

    try:
        image = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=True)
        pixels = np.asarray(image.to_pillow().convert("RGB"))
    except (ValueError, RuntimeError, OSError, EOFError, SyntaxError, MemoryError):
        return None
    return np.ascontiguousarray(pixels[:, :, ::-1])


def decode_avif(data: bytes) -> ImageArray | None:
    """Decode AVIF with Pillow, for builds of OpenCV without it: (H, W, 3) uint8 BGR as stored."""
    from PIL import Image, UnidentifiedImageError, features

    if not features.check("avif"):
        return None
    try:
        with Image.open(io.BytesIO(data), formats=["AVIF"]) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (ValueError, OSError, EOFError, SyntaxError, MemoryError, UnidentifiedImageError):
        return None
    return np.ascontiguousarray(pixels[:, :, ::-1])
