"""Size and time of stored feature maps by form, and of one file an image against few large ones.

    python benchmarks/maps.py [--data SET] [--weights FOLDER] [--images 8] [--files 500]
                              [--folder FOLDER]

SET is a folder in the VOC layout, FOLDER has the ImageNet weights; without them data/frk5 and weights
below $SPPDET_DATA are taken. Maps of SqueezeNet 1.1 and of EfficientNet-Lite0 (strides 16 and 32,
projected to 128 channels) are computed at the paper's five scales, written and read in every form.
"dense float16" is the form before zeros were left out. Times are CPU seconds of one thread, medians over
the images; reading ends in float16 maps. Then `--files` items of the mean size of SqueezeNet's are
written, and read back in another order with nothing in the page cache, one by one and in files of 100.
Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import before_torch  # noqa: F401
import numpy as np
import torch

from sppdet import load_config
from sppdet.features.backbones import Backbone, ScaledImage
from sppdet.features.joined import JoinedMaps, fit_joined
from sppdet.features.rounding import to_eight_bits
from sppdet.io.images import read_image
from sppdet.runs.artifacts import read_tensors, write_tensors
from sppdet.runs.environment import set_threads
from sppdet.stages.backbone import load_unfitted
from sppdet.stages.map_files import RoundedMap, from_tensors, to_tensors
from sppdet.types import FeatureMaps

T = TypeVar("T")
SCALES = [480, 576, 688, 864, 1200]
NETS = {
    "squeezenet_small": "squeezenet1_1_imagenet.safetensors",
    "lite0_small": "tf_efficientnet_lite0.safetensors",
}
_A_FILE = 100  # items of a large file


def main() -> None:
    below = os.environ.get("SPPDET_DATA")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=below and Path(below, "data", "frk5"))
    parser.add_argument("--weights", type=Path, default=below and Path(below, "weights"))
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--folder", type=Path, help="where the files are written; a temporary one")
    args = parser.parse_args()
    if args.data is None or args.weights is None:
        parser.error("expected --data and --weights, or SPPDET_DATA")
    set_threads(1)
    paths = sorted((args.data / "JPEGImages").iterdir())
    paths = paths[:: max(1, len(paths) // args.images)][: args.images]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        print("| maps | MB an image | writing, ms | reading, ms | rounding in detection, ms |")
        print("|---|---|---|---|---|")
        sizes = [measured_forms(name, args, paths, Path(folder)) for name in NETS]
        print(f"\n| {args.files} items of {sizes[0] / 1e6:.2f} MB | writing, ms each | reading |")
        print("|---|---|---|")
        measured_files(sizes[0], args.files, Path(folder))


def measured_forms(name: str, args: argparse.Namespace, paths: list[Path], folder: Path) -> int:
    """Print the rows of a network; returns the mean bytes of its files as they are by default."""
    found = [f"data.root={args.data}", f"backbone.weights={args.weights / NETS[name]}"]
    config = load_config(Path(name), found)
    backbone = load_unfitted(config)
    images = [backbone.scaled(read_image(path), SCALES, config.features) for path in paths]
    fit(backbone, images)
    forms: dict[str, tuple[bool, bool]] = {
        "dense float16": (False, False),
        "float16": (False, True),
        "dense int8": (True, False),
        "int8": (True, True),
    }
    rows: dict[str, list[tuple[int, float, float, float]]] = {form: [] for form in forms}
    computing = []
    for number, image in enumerate([images[0], *images]):  # the first time to compile
        maps, seconds = timed(partial(backbone.feature_maps, image))
        computing.append(seconds)
        for form, (eight, packed) in forms.items():
            row = measured(maps, backbone.channels, folder, eight_bits=eight, packed=packed)
            rows[form] += [row] if number else []
    print(f"| {config.backbone.name}, computing | | | | {_ms(computing[1:])} |")
    for form, found_rows in rows.items():
        sizes, *seconds_of = zip(*found_rows, strict=True)
        times = " | ".join(_ms(list(map(float, seconds))) for seconds in seconds_of)
        print(f"| {form} | {statistics.mean(sizes) / 1e6:.1f} | {times} |")
    return round(statistics.mean(size for size, *_ in rows["float16"]))


def measured(
    maps: FeatureMaps, channels: int, folder: Path, *, eight_bits: bool, packed: bool
) -> tuple[int, float, float, float]:
    """Write and read one image's maps: bytes, seconds of writing and of reading, of rounding alone."""
    path = folder / "maps.safetensors"

    def rounded() -> list[RoundedMap]:
        return [to_eight_bits(m) if eight_bits else m.half() for m in maps.maps]

    def write(given: list[RoundedMap]) -> int:
        if packed:
            return write_tensors(path, to_tensors(given, maps.scale_factors), made_by="")
        values = [
            m.values if not isinstance(m, torch.Tensor) else m.permute(1, 2, 0) for m in given
        ]
        dense = {f"map{s}": v for s, v in enumerate(values)}
        for s, m in enumerate(given):
            if not isinstance(m, torch.Tensor):
                dense |= {f"steps{s}": m.steps, f"zeros{s}": m.zeros}
        dense["scale_factors"] = torch.from_numpy(maps.scale_factors)
        return write_tensors(path, dense, made_by="")

    def read() -> list[torch.Tensor]:
        return [m.half() for m in from_tensors(read_tensors(path)[0], channels)[0]]

    given, _ = timed(rounded)
    expected, rounding = timed(lambda: [m.half() for m in rounded()])
    size, writing = timed(lambda: write(given))
    again, reading = timed(read)
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
    return size, writing, reading, rounding


def fit(backbone: Backbone, images: list[ScaledImage]) -> None:
    """Fit what joins maps to the images themselves."""
    layers = backbone.layers
    if not isinstance(layers, JoinedMaps):
        return
    with torch.inference_mode():
        made = [layers.maps(backbone.preprocessing.padded_input(i.pixels[1])) for i in images]
    fit_joined(layers, [[m[0].flatten(1).T.numpy() for m in maps] for maps in made])


def measured_files(size: int, count: int, folder: Path) -> None:
    """Print wall milliseconds of items in files of their own and in large ones."""
    items = [np.random.default_rng(i).integers(0, 256, size, np.uint8) for i in range(8)]
    (folder / "single").mkdir()

    def path(i: int) -> Path:
        return folder / "single" / f"{i:04}.safetensors"

    def write_single() -> None:
        for i in range(count):
            write_tensors(path(i), {"a": torch.from_numpy(items[i % 8])}, made_by="")

    def write_large() -> None:
        for start in range(0, count, _A_FILE):
            with (folder / f"large{start}").open("wb") as handle:
                for i in range(start, min(start + _A_FILE, count)):
                    zlib.crc32(items[i % 8].data)
                    handle.write(items[i % 8].data)
                handle.flush()
                os.fsync(handle.fileno())

    def read_large() -> None:
        for i in order():
            with (folder / f"large{i // _A_FILE * _A_FILE}").open("rb") as handle:
                handle.seek(i % _A_FILE * size)
                zlib.crc32(handle.read(size))

    def read_single() -> None:
        for i in order():
            read_tensors(path(i))

    def order() -> Iterator[int]:
        yield from np.random.default_rng(0).permutation(count).tolist()

    for title, write, read in (
        ("a file each", write_single, read_single),
        (f"{_A_FILE} in a file", write_large, read_large),
    ):
        start = time.perf_counter()
        write()
        written = time.perf_counter()
        for file in folder.rglob("*"):
            if file.is_file():
                forget(file)
        dropped = time.perf_counter()
        read()
        seconds = written - start, time.perf_counter() - dropped
        print(f"| {title} | " + " | ".join(f"{1e3 * s / count:.1f}" for s in seconds) + " |")
    shutil.rmtree(folder / "single")


def forget(path: Path) -> None:
    """Drop a file from the page cache (Linux)."""
    with path.open("rb") as handle:
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(function: Callable[[], T]) -> tuple[T, float]:
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def _ms(seconds: list[float]) -> str:
    return f"{1e3 * statistics.median(seconds):.0f}"


if __name__ == "__main__":
    main()
