"""Digest of a data set."""

from __future__ import annotations

import hashlib

from sppdet.io.image_cache import ImageCache
from sppdet.types import Dataset


def dataset_digest(dataset: Dataset, images: ImageCache | None) -> str:
    """Hash the images and their ground truth, wherever they lie, to 16 hexadecimal digits.

    Args:
        images: has the digests of the images; None for a data set read without images, whose
            digest is of the ground truth alone.
    """
    digest = hashlib.blake2b(repr(dataset.class_names).encode(), digest_size=8)
    for image in dataset.images:
        content = images.digest(image.path) if images is not None else ""
        digest.update(f"{image.id} {content}".encode())
        for array in (image.gt_boxes, image.gt_labels, image.difficult):
            digest.update(array.tobytes())
    return digest.hexdigest()
