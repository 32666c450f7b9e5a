"""The detector over files and folders of pictures, and the files that it leaves."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from sppdet.artifacts import atomic_path, write_json, write_text
from sppdet.data.images import find_images
from sppdet.data.results import results_entry
from sppdet.data.voc import write_voc_annotation
from sppdet.detection.detector import Detector
from sppdet.detection.drawing import draw_detections
from sppdet.errors import ConfigError, DataError, ImageError
from sppdet.features.backbones import ScaledPicture
from sppdet.parallel import in_flight, ordered_map
from sppdet.run import Reporter
from sppdet.types import Detections, Picture, Proposals

Format = Literal["images", "json", "csv", "voc", "coco"]
FORMATS: tuple[Format, ...] = ("images", "json", "csv", "voc", "coco")


@dataclass(frozen=True)
class _Found:
    """One picture's detections, its size in pixels and its name among the results.

    `stem` is what the files about it are called, without their suffixes.
    """

    name: str
    stem: str
    width: int
    height: int
    detections: Detections


@dataclass(frozen=True)
class FolderResult:
    """How many pictures and detections there were, and one line for each picture that failed."""

    pictures: int
    detections: int
    failed: tuple[str, ...]


def parse_formats(text: str) -> tuple[Format, ...]:
    """The formats of `--save`, such as "images,json"."""
    chosen = [part.strip() for part in text.split(",") if part.strip()]
    for part in chosen or [""]:
        if part not in FORMATS:
            raise ConfigError(f"--save{part and ' '}{part}: expected some of {', '.join(FORMATS)}")
    return tuple(name for name in FORMATS if name in chosen)


def detect_folder(
    detector: Detector,
    paths: Sequence[Path],
    out: Path,
    *,
    min_score: float,
    formats: Sequence[Format],
    workers: int,
    reporter: Reporter,
) -> FolderResult:
    """Detect in pictures and folders of pictures and write the results into `out`.

    A picture that can't be decoded is left out and named in the result. Results of the pictures
    done so far are written whatever ends the work.

    Args:
        min_score: detections with a score >= this are kept.
        workers: threads that decode and resize pictures and search for proposals.
    """
    # what scores less has no say in NMS: nothing is computed for it
    settings = detector.config.model_copy(
        update={"min_score": max(min_score, detector.config.min_score)}
    )
    detector = replace(detector, config=settings)
    pictures = find_images(paths)
    names = _names(pictures, paths)
    stems = _stems(names)
    if "images" in formats:
        _refuse_overwriting(pictures, stems, out)
    found: list[_Found] = []
    failed: list[str] = []

    def prepare(path: Path) -> tuple[Picture, Proposals, ScaledPicture] | ImageError:
        try:
            picture = detector.read(path)
        except ImageError as error:
            return error
        return picture, detector.proposer.of(picture), detector.maps.scaled(picture)

    def detect(
        named: tuple[Path, tuple[Picture, Proposals, ScaledPicture] | ImageError],
    ) -> tuple[Picture, Detections] | ImageError:
        path, prepared = named
        if isinstance(prepared, ImageError):
            return prepared
        picture, proposals, scaled = prepared
        maps = detector.maps.compute(scaled)
        return picture, detector.detect(maps, proposals, picture, path=str(path))

    due = zip(pictures, ordered_map(prepare, pictures, workers=workers), strict=True)
    done = ordered_map(detect, due, workers=in_flight(detector.maps.device))
    work = zip(names, stems, done, strict=True)
    try:
        for name, stem, result in reporter.track(work, total=len(pictures), label="detecting"):
            if isinstance(result, ImageError):
                failed.append(str(result))
                reporter.say(f"skipped: {result}", "skipped")
                continue
            picture, detections = result
            height, width = picture.shape[:2]
            found.append(_Found(name, stem, width, height, detections))
            _write_picture_files(found[-1], picture, out, formats)
    finally:
        _write_joint_files(found, detector.class_names, out, formats)
    return FolderResult(len(found), sum(len(f.detections) for f in found), tuple(failed))


def _names(pictures: Sequence[Path], paths: Sequence[Path]) -> list[str]:
    """Each picture's path below the outermost folder that was given, or its file name.

    Where two are the same, all are named by their paths below the folder that they share.
    """
    whole = [Path(os.path.abspath(path)) for path in pictures]
    folders = [Path(os.path.abspath(path)) for path in paths if path.is_dir()]

    def short(path: Path) -> str:
        inside = [f for f in folders if path.is_relative_to(f)]
        base = min(inside, key=lambda f: len(f.parts)) if inside else path.parent
        return path.relative_to(base).as_posix()

    names = [short(path) for path in whole]
    if len({name.casefold() for name in names}) == len(names):
        return names
    shared = os.path.commonpath([path.parent for path in whole])
    return [path.relative_to(shared).as_posix() for path in whole]


def _stems(names: Sequence[str]) -> list[str]:
    """The names without their suffixes, or with them where two would be the same without."""
    stems = [Path(name).with_suffix("").as_posix() for name in names]
    return stems if len({stem.casefold() for stem in stems}) == len(stems) else list(names)


def _refuse_overwriting(pictures: Sequence[Path], stems: Sequence[str], out: Path) -> None:
    """Drawn pictures must not take the place of those that they are drawn on."""
    given = {os.path.abspath(path) for path in pictures}
    for stem in stems:
        target = out / "images" / f"{stem}.jpg"
        if os.path.abspath(target) in given:
            raise ConfigError(f"--out {out}: {target} is one of the pictures to detect in")


def _write_picture_files(
    found: _Found, picture: Picture, out: Path, formats: Sequence[Format]
) -> None:
    if "images" in formats:
        drawn = draw_detections(picture, found.detections)
        done, data = cv2.imencode(".jpg", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
        if not done:
            raise DataError(f"{found.name}: can't be encoded as JPEG")
        with atomic_path(out / "images" / f"{found.stem}.jpg") as temporary:
            temporary.write_bytes(np.asarray(data).tobytes())
    if "voc" in formats:
        path = out / "Annotations" / f"{found.stem}.xml"
        write_voc_annotation(
            path,
            filename=Path(found.name).name,
            width=found.width,
            height=found.height,
            boxes=found.detections.boxes,
            names=found.detections.names(),
        )


def _write_joint_files(
    found: Sequence[_Found], class_names: Sequence[str], out: Path, formats: Sequence[Format]
) -> None:
    rows = _rows(found)
    if "json" in formats:
        images = [
            {"id": i, "file_name": f.name, "path": f.detections.path, "width": f.width, "height": f.height}
            for i, f in enumerate(found, start=1)
        ]  # fmt: skip
        categories = [{"id": k, "name": name} for k, name in enumerate(class_names, start=1)]
        content = {"images": images, "categories": categories, "annotations": rows}
        write_json(out / "detections.json", content)
    if "coco" in formats:
        entries = [
            results_entry(
                image_id=image_id,
                file_name=one.name,
                category_id=label,
                category_name=name,
                box=box,
                score=score,
            )
            for image_id, one in enumerate(found, start=1)
            for name, box, score, label in _columns(one.detections)
        ]
        write_json(out / "coco_results.json", entries)
    if "csv" in formats:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file_name", "class", "score", "x1", "y1", "x2", "y2"])
        for row in rows:
            x, y, w, h = row["bbox"]
            box = [f"{value:.2f}" for value in (x, y, x + w, y + h)]
            writer.writerow([row["file_name"], row["class"], f"{row['score']:.6f}", *box])
        write_text(out / "detections.csv", text.getvalue())


def _rows(found: Sequence[_Found]) -> list[dict[str, Any]]:
    """COCO-like annotations, each also with the picture's file and the class's name."""
    rows: list[dict[str, Any]] = []
    for image_id, one in enumerate(found, start=1):
        for name, (x1, y1, x2, y2), score, label in _columns(one.detections):
            rows.append(
                {
                    "id": len(rows) + 1,
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "score": score,
                    "file_name": one.name,
                    "class": name,
                }
            )
    return rows


def _columns(found: Detections) -> Iterator[tuple[str, list[float], float, int]]:
    """Class name, box, score and label of every detection."""
    columns = (found.names(), found.boxes.tolist(), found.scores.tolist(), found.labels.tolist())
    return zip(*columns, strict=True)
