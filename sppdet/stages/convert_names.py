"""Names of images and sets in a converted data set."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path

from sppdet.io.formats.common import split_word
from sppdet.io.names import distinct_stems, escape_name, number_repeats, safe_id

_ENDINGS = [re.compile(re.escape(suffix) + r"\Z") for suffix in (".xml", ".txt", ".json")]


def set_names(names: Sequence[str]) -> list[str]:
    """Name sets by a word: "train" for "annotations/instances_train2017.json" or "train/labels.csv".

    Names without such a word, and those of several sets, stay as they are but for folders and suffix.
    """
    words = [split_word(name) for name in names]
    plain = [
        word if word and words.count(word) == 1 else safe_id(Path(name).stem)
        for word, name in zip(words, names, strict=True)
    ]
    return number_repeats(plain)


def image_names(
    images: Mapping[str, Sequence[Path]],
) -> tuple[dict[Path, str], dict[str, Path]]:
    """Name images by their paths below the folder that all share, or below that of their set.

    The latter where each set has a folder of its own ("train", "valid"), unless a name would be that of
    two images.

    Args:
        images: absolute paths by set.

    Returns:
        The name of each image, see `escape_name`, and the folder by set; by "" if there is one.
    """
    folders = {name: _shared(paths) for name, paths in images.items()}
    names = {
        path: path.relative_to(folders[part]).as_posix()
        for part, paths in images.items()
        for path in paths
    }
    apart = not any(one.is_relative_to(two) for one, two in permutations(folders.values(), 2))
    if not apart or len({name.casefold() for name in names.values()}) < len(names):
        shared = _shared(list(names))
        folders = {"": shared}
        names = {path: path.relative_to(shared).as_posix() for path in names}
    elif len(folders) == 1:
        folders = {"": next(iter(folders.values()))}
    return {path: escape_name(name) for path, name in names.items()}, folders


def image_stems(names: Mapping[Path, str]) -> dict[Path, str]:
    """Give the path of each image's files without suffix; they differ on every file system."""
    return dict(zip(names, distinct_stems(list(names.values()), _ENDINGS), strict=True))


def _shared(paths: Sequence[Path]) -> Path:
    try:
        return Path(os.path.commonpath([path.parent for path in paths]))
    except ValueError:  # on several drives of Windows
        return Path(paths[0].anchor)
