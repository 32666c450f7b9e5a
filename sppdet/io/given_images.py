"""Images as callers of the API have them: paths, bytes, PIL images, arrays and tensors."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sppdet.errors import ImageError, one_line
from sppdet.io.images import decode, read_image
from sppdet.types import ImageArray

GivenImage: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | Image.Image
    | NDArray[np.uint8]
    | torch.Tensor
)
GivenImages: TypeAlias = list[Any] | tuple[Any, ...]  # Any: a list of paths is one of images

EXPECTED = (
    "a path, the bytes of an image file, a PIL image, an array uint8 (H, W, 3), a tensor (3, H, W) or "
    "(H, W, 3), or a list of them"
)
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # of PIL, of more than 8 bits


@dataclass(frozen=True)
class Pixels:
    """The pixels (H, W, 3) uint8 RGB of an image.

    `path` is empty unless a path was given; `again` returns the pixels without keeping those of a file.
    """

    array: ImageArray
    path: str
    again: Callable[[], ImageArray]


def pixels_of(image: GivenImage, *, bgr: bool, max_pixels: int) -> Pixels:
    """Return the pixels of an image of any kind.

    Files, bytes and PIL images become RGB, turned by their EXIF orientation, as `read_image` says.
    Arrays and tensors are taken as they are: three channels in RGB order, or BGR with `bgr`. A tensor
    of floating-point values must have them in 0..1, as torchvision's `to_tensor` makes them; if its
    first dimension is 3, it is the channels.

    Args:
        max_pixels: larger files, bytes and PIL images are refused before they are decoded.

    Raises:
        ValueError: none of these kinds, an array or tensor of another shape, type or range, or `bgr`
            with something that has its order of channels itself.
        ImageError: a file is missing, or it or the bytes can't be decoded.
    """
    if isinstance(image, np.ndarray | torch.Tensor):
        array = _of_tensor(image) if isinstance(image, torch.Tensor) else _checked(image)
        pixels = np.ascontiguousarray(array[:, :, ::-1]) if bgr else array
        return Pixels(pixels, "", partial(_same, pixels))
    if bgr and isinstance(image, str | os.PathLike | bytes | bytearray | memoryview | Image.Image):
        shown = _shown(image)
        raise ValueError(f"bgr with {shown}: expected an array; a file is read in its own order")
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        again = partial(read_image, path, max_pixels=max_pixels)
        return Pixels(again(), path, again)
    if isinstance(image, bytes | bytearray | memoryview):
        again = partial(_decoded, bytes(image), max_pixels)
        return Pixels(again(), "", again)
    if isinstance(image, Image.Image):
        pixels = _of_pil(image, max_pixels)
        return Pixels(pixels, "", partial(_same, pixels))
    raise ValueError(f"image: {_shown(image)}, expected {EXPECTED}")


def _same(pixels: ImageArray) -> ImageArray:
    return pixels


def _decoded(data: bytes, max_pixels: int) -> ImageArray:
    return decode(data, f"image of {len(data):,} bytes", max_pixels=max_pixels).pixels


def _checked(image: NDArray[Any]) -> ImageArray:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"image: {image.dtype} {image.shape}, expected uint8 (H, W, 3) RGB")
    return image


def _of_tensor(image: torch.Tensor) -> ImageArray:
    """Return a tensor's values as (H, W, 3) uint8."""
    shape = tuple(image.shape)
    found = f"image: tensor {str(image.dtype).removeprefix('torch.')} {shape}"
    if image.ndim != 3 or 3 not in (shape[0], shape[2]) or 0 in shape:
        several = "; a batch is passed as a list: list(batch)" if image.ndim == 4 else ""
        raise ValueError(f"{found}, expected (3, H, W) or (H, W, 3){several}")
    values = image.detach().cpu()
    if values.is_floating_point():
        low, high = (float(value) for value in torch.aminmax(values))
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise ValueError(
                f"{found} from {low:.4g} to {high:.4g}, expected uint8, or values in 0..1"
            )
        values = (values.float() * 255).round().to(torch.uint8)
    if values.dtype != torch.uint8:
        raise ValueError(f"{found}, expected uint8, or floating-point values in 0..1")
    rows = values.permute(1, 2, 0) if shape[0] == 3 else values
    return np.ascontiguousarray(rows.numpy())


def _of_pil(image: Image.Image, max_pixels: int) -> ImageArray:
    """Convert a PIL image of any mode; what has more than 8 bits is scaled as that of a file."""
    name = f"PIL image {image.mode}"
    if image.width * image.height > max_pixels or 0 in image.size:
        raise ImageError(
            f"{name}: {image.width}x{image.height} pixels, expected 1 to {max_pixels}"
            " (data.max_pixels)"
        )
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode not in _DEEP_MODES:
            return np.array(upright.convert("RGB"))  # a copy: PIL's memory is read-only
    except (OSError, ValueError, SyntaxError) as error:  # a damaged file, a mode without colours
        raise ImageError(
            f"{name}: can't be converted to RGB: {one_line(str(error), 120)}"
        ) from None
    values, data = np.asarray(upright), io.BytesIO()
    if values.dtype.kind != "f" and values.min() >= 0 and values.max() < 2**16:
        Image.fromarray(values.astype(np.uint16)).save(data, "PNG")
    else:
        upright.convert("F").save(data, "PPM")  # as PFM
    return decode(data.getvalue(), name, max_pixels=max_pixels).pixels


def _shown(image: object) -> str:
    if isinstance(image, str | os.PathLike):
        return one_line(str(image), 80)
    if isinstance(image, bytes | bytearray | memoryview):
        return f"{len(image):,} bytes"
    return type(image).__name__
