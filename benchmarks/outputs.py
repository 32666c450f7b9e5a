"""Every kind of output, made by one command each and read back by another program.

    python benchmarks/outputs.py SPPDET RUN IMAGES LABELS [--work FOLDER] [--only TEXT]

SPPDET is the program to call, such as that of a fresh environment with the wheel (see scripts/outputs);
RUN a trained run, IMAGES a folder of images, LABELS a folder in VOC's layout. Prints a Markdown table; an
output that isn't read back as it was written ends the work with status 1. Needs the extra `dev`.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import supervision
from PIL import Image
from pycocotools.coco import COCO
from torchvision.datasets import ImageFolder, VOCDetection

Counts = tuple[int, int]  # images and objects


@dataclass(frozen=True)
class Row:
    """An output: the arguments, the program that reads it, and what it finds."""

    arguments: str
    program: str
    read: Callable[[Path], Counts]


def main() -> None:
    run_table(table, __doc__ or "", ("sppdet", "run", "images", "labels"))


def run_table(
    table: Callable[[argparse.Namespace, Path], int], description: str, names: Sequence[str]
) -> None:
    """Print a table in a folder of its own; the exit status is the number of its wrong rows."""
    parser = argparse.ArgumentParser(description=description)
    for name in names:
        parser.add_argument(name, type=Path)
    parser.add_argument("--work", type=Path, help="folder for what is made; default: temporary")
    parser.add_argument("--only", default="", help="the commands that have this text")
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix="sppdet-"))
    try:
        wrong = table(args, work)
    finally:
        if args.work is None:
            shutil.rmtree(work)
    sys.exit(wrong)


def table(args: argparse.Namespace, work: Path) -> int:
    """Print the table; returns the number of outputs that were read wrongly."""
    base = work / "base"
    call(args.sppdet, ["detect", args.run, args.images, "--out", base, "--save", "json"])
    found = json.loads((base / "detections.json").read_text())
    detections = len(found["images"]), len(found["annotations"])
    labels = count_voc(args.labels)
    named = {"RUN": args.run, "IMAGES": args.images, "LABELS": args.labels}
    named |= {"FOUND.json": base / "detections.json"}
    print("| command | read by | images, objects |\n|---|---|---|")
    wrong = 0
    chosen = [row for row in rows(args.images) if args.only in row.arguments]
    for number, row in enumerate(chosen):
        out = work / f"{number:02d}"
        words = row.arguments.split()
        call(args.sppdet, [{**named, "OUT": out}.get(word, word) for word in words])
        wanted = labels if "LABELS" in row.arguments else detections
        with contextlib.redirect_stdout(io.StringIO()):  # what pycocotools says
            counts = row.read(out)
        # crops and lines of detections say nothing of images without any
        right = counts[1] == wanted[1] and counts[0] in (wanted[0], 0)
        wrong += not right
        said = f"{counts[0] or '–'}, {counts[1]}" + ("" if right else f", expected {wanted}")
        print(f"| `sppdet {row.arguments}` | {row.program} | {said} |", flush=True)
    return wrong


def call(program: Path, words: Sequence[str | Path], *, stdin: Path | None = None) -> None:
    """Call sppdet as it is installed: without the sources beside this file."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    given = None if stdin is None else stdin.read_bytes()
    ended = subprocess.run([program, *words], capture_output=True, input=given, env=env)
    if ended.returncode:
        sys.exit(f"sppdet {' '.join(map(str, words))}: {ended.stderr.decode(errors='replace')}")


def rows(images: Path) -> list[Row]:
    """List the outputs."""
    detect, labels = "detect RUN IMAGES --out OUT --save", "convert LABELS OUT --format"
    found = "convert FOUND.json OUT --format"
    return [
        Row(f"{detect} images,json", "Pillow, pycocotools", read_drawings),
        Row(f"{detect} json", "supervision", lambda out: sv_coco(images, out / "detections.json")),
        Row(f"{detect} coco,json", "pycocotools (loadRes)", read_results),
        Row(f"{detect} jsonl", "json of Python", read_jsonl),
        Row(f"{detect} csv", "csv of Python", read_csv),
        Row(f"{detect} voc", "supervision", lambda out: sv_voc(images, out / "Annotations")),
        Row(f"{detect} yolo", "supervision", lambda out: sv_yolo(images, out / "yolo")),
        Row(f"{detect} crops", "torchvision (ImageFolder)", read_crops),
        Row(f"{labels} voc", "torchvision (VOCDetection)", read_voc),
        Row(f"{labels} coco --images copy", "pycocotools, supervision", read_coco),
        Row(f"{labels} yolo", "supervision", read_yolo),
        Row(f"{labels} csv", "csv of Python", read_retinanet),
        Row(f"{labels} jsonl", "json of Python", read_jsonl),
        Row(f"{labels} labelme", "json, Pillow", read_labelme),
        Row(f"{labels} via", "json of Python", read_via),
        Row(f"{labels} cvat", "ElementTree of Python", read_cvat),
        Row(f"{labels} labelstudio", "json, by its documented fields", read_tasks),
        Row(
            f"{found} voc",
            "supervision",
            lambda out: sv_voc(out / "JPEGImages", out / "Annotations"),
        ),
        Row(f"{found} yolo", "supervision", lambda out: sv_yolo(out / "images", out)),
        Row(f"{found} coco", "supervision", lambda out: sv_coco(images, coco_file(out))),
        Row(f"{found} coco-results", "json of Python", read_list),
        Row(f"{found} comp4", "lines of six fields", read_comp4),
        Row(f"{found} json", "pycocotools", lambda out: count_coco(out / "detections.json")),
    ]


def count_voc(root: Path) -> Counts:
    """Count the images of all sets, and their objects."""
    lists = (root / "ImageSets" / "Main").glob("*.txt")
    names = {line.split()[0] for path in lists for line in path.read_text().splitlines() if line}
    roots = [ElementTree.parse(root / "Annotations" / f"{name}.xml").getroot() for name in names]
    return len(roots), sum(len(one.findall("object")) for one in roots)


def count_coco(file: Path) -> Counts:
    coco = COCO(str(file))
    return len(coco.imgs), len(coco.getAnnIds(areaRng=[1e-9, 1e12], iscrowd=False))


def read_drawings(out: Path) -> Counts:
    """Open each drawing, which has the size of its image."""
    images, objects = count_coco(out / "detections.json")
    sizes = sorted(Image.open(path).convert("RGB").size for path in (out / "images").rglob("*.jpg"))
    found = json.loads((out / "detections.json").read_text())["images"]
    same = sizes == sorted((image["width"], image["height"]) for image in found)
    return (images if same else -1), objects


def read_results(out: Path) -> Counts:
    truth = COCO(str(out / "detections.json"))
    results = truth.loadRes(str(out / "coco_results.json"))
    return len(results.imgs), len(results.anns)


def read_jsonl(out: Path) -> Counts:
    files = [path for path in out.glob("*.jsonl") if not path.name.startswith(".")]
    texts = (path.read_text(encoding="utf-8") for path in files)
    lines = [json.loads(line) for text in texts for line in text.splitlines()]
    names = {line["file_name"] for line in lines}  # which may be in several sets
    own: dict[str, list[Any]] = {
        line["file_name"]: line.get("detections", line.get("objects")) for line in lines
    }
    return len(names), sum(map(len, own.values()))


def read_csv(out: Path) -> Counts:
    with (out / "detections.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert all(float(row["x2"]) >= float(row["x1"]) and row["class"] for row in rows)
    return 0, len(rows)


def read_retinanet(out: Path) -> Counts:
    images: dict[str, set[tuple[str, ...]]] = {}
    for path in out.glob("*.csv"):
        if path.name != "classes.csv":
            with path.open(encoding="utf-8", newline="") as handle:
                for image, *box in csv.reader(handle):
                    assert (out / image).is_file()
                    images.setdefault(image, set()).update({tuple(box)} if any(box) else set())
    return len(images), sum(map(len, images.values()))


def sv_coco(images: Path, file: Path) -> Counts:
    return count_supervision(supervision.DetectionDataset.from_coco(str(images), str(file)))


def sv_voc(images: Path, annotations: Path) -> Counts:
    return count_supervision(
        supervision.DetectionDataset.from_pascal_voc(str(images), str(annotations))
    )


def sv_yolo(images: Path, out: Path) -> Counts:
    labels, data = str(out / "labels"), str(out / "data.yaml")
    return count_supervision(supervision.DetectionDataset.from_yolo(str(images), labels, data))


def count_supervision(data: supervision.DetectionDataset) -> Counts:
    return len(data), sum(len(one) for _, _, one in data)


def read_crops(out: Path) -> Counts:
    data = ImageFolder(str(out / "crops"))
    assert all(min(image.size) > 0 for image, _ in data)
    return 0, len(data)


def read_voc(out: Path) -> Counts:
    base = out.parent / f"{out.name}-devkit" / "VOCdevkit"
    base.mkdir(parents=True)
    (base / "VOC2007").symlink_to(out)  # the year that has a test set
    seen: dict[str, int] = {}
    for path in (out / "ImageSets" / "Main").glob("*.txt"):
        data = VOCDetection(str(base.parent), year="2007", image_set=path.stem)
        for k, (_, target) in enumerate(data):
            seen[data.annotations[k]] = len(target["annotation"].get("object", []))
    return len(seen), sum(seen.values())


def read_coco(out: Path) -> Counts:
    seen: dict[str, int] = {}
    for path in (out / "annotations").glob("*.json"):
        coco = COCO(str(path))
        for key, image in coco.imgs.items():
            seen[image["file_name"]] = len(coco.getAnnIds(imgIds=key))
        assert sv_coco(out / "images", path) == (len(coco.imgs), len(coco.anns))
    return len(seen), sum(seen.values())


def coco_file(out: Path) -> Path:
    (path,) = (out / "annotations").glob("*.json")
    return path


def read_yolo(out: Path) -> Counts:
    images = objects = 0
    for folder in (out / "images").iterdir():
        found = supervision.DetectionDataset.from_yolo(
            str(folder), str(out / "labels" / folder.name), str(out / "data.yaml")
        )
        more = count_supervision(found)
        images, objects = images + more[0], objects + more[1]
    return images, objects


def read_labelme(out: Path) -> Counts:
    files = list(out.rglob("*.json"))
    objects = 0
    for file in files:
        data = json.loads(file.read_text(encoding="utf-8"))
        with Image.open(file.parent / data["imagePath"]) as image:
            assert image.size == (data["imageWidth"], data["imageHeight"])
        objects += len(data["shapes"])
    return len(files), objects


def read_via(out: Path) -> Counts:
    """Read VIA's images, which may be in several sets."""
    seen: dict[str, int] = {}
    for file in out.glob("*.json"):
        for key, entry in json.loads(file.read_text(encoding="utf-8")).items():
            assert key == f"{entry['filename']}{entry['size']}"
            assert (out / entry["filename"]).is_file()
            seen[key] = len(entry["regions"])
    return len(seen), sum(seen.values())


def read_cvat(out: Path) -> Counts:
    images = [i for file in out.glob("*.xml") for i in ElementTree.parse(file).iter("image")]
    seen = {image.attrib["name"]: len(image.findall("box")) for image in images}
    return len(seen), sum(seen.values())


def read_tasks(out: Path) -> Counts:
    seen: dict[str, int] = {}
    for file in out.glob("*.json"):
        for task in json.loads(file.read_text(encoding="utf-8")):
            (path,) = parse_qs(urlsplit(task["data"]["image"]).query)["d"]
            assert Path("/", path).is_file()
            (annotation,) = task["annotations"]
            seen[path] = len(annotation["result"])
    return len(seen), sum(seen.values())


def read_list(out: Path) -> Counts:
    entries = json.loads((out / "coco_results.json").read_text())
    assert all(set(entry) >= {"image_id", "category_id", "bbox", "score"} for entry in entries)
    return 0, len(entries)


def read_comp4(out: Path) -> Counts:
    lines = [line for path in out.glob("comp4_*.txt") for line in path.read_text().splitlines()]
    assert all(len([float(word) for word in line.rsplit(maxsplit=5)[1:]]) == 5 for line in lines)
    return 0, len(lines)


if __name__ == "__main__":
    main()
