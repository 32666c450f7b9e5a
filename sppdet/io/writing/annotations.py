"""Data sets written for labelling tools and training programs: the files of each layout.

Every function yields the files below the folder of the set, by their path with `/`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any
from xml.etree import ElementTree

from sppdet.io.label_studio import Region, labelling_interface, task
from sppdet.io.names import escape_name
from sppdet.io.voc_writing import voc_annotation
from sppdet.io.writing.sets import LabelledImage, LabelledSet, Places, number
from sppdet.io.yolo_writing import yolo_data, yolo_labels

Files = Iterator[tuple[str, bytes]]
ALL = "all"
"""Name of the one set of data without a split, in layouts that need a name."""


def voc_files(data: LabelledSet, places: Places) -> Files:
    """Write VOC's devkit: Annotations, and lists of the sets; images go to JPEGImages."""
    for image in data.images:
        names = [escape_name(data.class_names[label - 1]) for label in image.labels.tolist()]
        text = voc_annotation(
            filename=PurePosixPath(image.file if places.at else image.name).name,
            width=image.width,
            height=image.height,
            boxes=image.boxes,
            names=names,
            difficult=image.difficult,
            truncated=image.truncated,
        )
        yield f"Annotations/{image.stem}.xml", text.encode()
    for name, images in data.parts(ALL):
        lines = "".join(f"{image.stem}\n" for image in images)
        yield f"ImageSets/Main/{name}.txt", lines.encode()


def yolo_files(data: LabelledSet, places: Places) -> Files:
    """Write YOLO's labels, data.yaml as Ultralytics has it, and classes.txt.

    Scores of detections stand behind their boxes.
    """
    for image in data.images:
        text = yolo_labels(
            image.boxes,
            image.labels,
            width=image.width,
            height=image.height,
            scores=image.scores,
        )
        yield f"labels/{set_folder(data, image)}{image.stem}.txt", text.encode()
    homes = {data.home(image) for image in data.images if image.sets}
    sets = _yolo_sets([name for name in data.sets if name in homes])
    yield "data.yaml", yolo_data(data.class_names, sets).encode()
    yield "classes.txt", "".join(f"{escape_name(n)}\n" for n in data.class_names).encode()


def set_folder(data: LabelledSet, image: LabelledImage) -> str:
    """Return the folder of an image's set, with a `/`; "" without a split."""
    return f"{data.home(image)}/" if image.sets else ""


def _yolo_sets(names: list[str]) -> dict[str, str]:
    """Give the folder of each set by the keys that Ultralytics knows; it demands train and val."""
    folders = {name: f"images/{name}" for name in names}
    if not folders:
        return {"train": "images", "val": "images"}
    train = folders.pop("train", None) or folders.pop("trainval", None)
    train = train or folders.pop(names[0])
    val = folders.pop("val", None) or folders.get("test") or next(iter(folders.values()), train)
    return {"train": train, "val": val, **folders}


def coco_files(data: LabelledSet, places: Places) -> Files:
    """Write COCO's instances, a file for each set.

    Difficult objects have `ignore`, truncated ones `truncated`; detections have their `score`.
    """
    ids = {image.name: k for k, image in enumerate(data.images, start=1)}
    categories = [{"id": k, "name": name} for k, name in enumerate(data.class_names, start=1)]
    for name, images in data.parts(ALL):
        listed = [
            {
                "id": ids[image.name],
                "file_name": image.file if places.at else image.name,
                "width": image.width,
                "height": image.height,
            }
            for image in images
        ]
        objects = [
            {"image_id": ids[image.name], **_coco_object(image, row)}
            for image in images
            for row in range(len(image.boxes))
        ]
        content = {
            "images": listed,
            "annotations": [{"id": k, **entry} for k, entry in enumerate(objects, start=1)],
            "categories": categories,
        }
        yield f"annotations/instances_{name}.json", _json(content)


def _coco_object(image: LabelledImage, row: int) -> dict[str, Any]:
    x1, y1, x2, y2 = image.boxes[row].tolist()
    entry = {
        "category_id": int(image.labels[row]),
        "bbox": [number(value) for value in (x1, y1, x2 - x1, y2 - y1)],
        "area": number((x2 - x1) * (y2 - y1)),
        "iscrowd": 0,
    }
    return {**entry, **_flags(image, row, "ignore"), **_score(image, row)}


def csv_files(data: LabelledSet, places: Places) -> Files:
    """Write RetinaNet's rows `path,x1,y1,x2,y2,class`, a file for each set, and its list of classes.

    An image without objects has a row `path,,,,,`. There is no header, as RetinaNet's programs want it.
    """
    for name, images in data.parts("annotations"):
        rows: list[list[Any]] = []
        for image in images:
            path = escape_name(places.relative(image))
            labels = image.labels.tolist()
            rows += [
                [path, *map(number, box), escape_name(data.class_names[label - 1])]
                for box, label in zip(image.boxes.tolist(), labels, strict=True)
            ] or [[path, "", "", "", "", ""]]
        yield f"{name}.csv", _csv(rows)
    classes = [[escape_name(name), k] for k, name in enumerate(data.class_names)]
    yield "classes.csv", _csv(classes)


def jsonl_files(data: LabelledSet, places: Places) -> Files:
    """Write a JSON line for each image, a file for each set."""
    for name, images in data.parts("annotations"):
        lines = []
        for image in images:
            entry = {
                "file_name": image.name,
                "path": escape_name(places.path(image).as_posix()),
                "width": image.width,
                "height": image.height,
                "objects": [
                    {
                        "class": data.class_names[image.labels[row] - 1],
                        "box": [number(side) for side in image.boxes[row].tolist()],
                        **_flags(image, row),
                        **_score(image, row),
                    }
                    for row in range(len(image.boxes))
                ],
            }
            lines.append(json.dumps(entry, allow_nan=False) + "\n")
        yield f"{name}.jsonl", "".join(lines).encode()


def labelme_files(data: LabelledSet, places: Places) -> Files:
    """Write labelme's JSON, a file for each image, in a folder for each set.

    Flags and scores are where labelme keeps the first and X-AnyLabeling the second.
    """
    for image in data.images:
        folder = set_folder(data, image)
        file = f"{folder}{image.stem}.json"
        shapes = [
            {
                "label": data.class_names[image.labels[row] - 1],
                "points": [[x1, y1], [x2, y2]],
                "group_id": None,
                "description": "",
                "shape_type": "rectangle",
                "flags": dict.fromkeys(_flags(image, row), True),
                **_score(image, row),
            }
            for row, (x1, y1, x2, y2) in enumerate(image.boxes.astype(float).tolist())
        ]
        content: dict[str, Any] = {
            "version": "5.4.1",
            "flags": {},
            "shapes": shapes,
            "imagePath": escape_name(places.relative(image, str(PurePosixPath(file).parent))),
            "imageData": None,
            "imageHeight": image.height,
            "imageWidth": image.width,
        }
        yield file, _json(content)


def via_files(data: LabelledSet, places: Places) -> Files:
    """Write the JSON that the VGG Image Annotator 2 imports, a file for each set.

    The class is the attribute `class` of a region; flags and scores are attributes as well.
    """
    for name, images in data.parts("annotations"):
        entries = {}
        for image in images:
            regions = []
            for row, (x1, y1, x2, y2) in enumerate(image.boxes.tolist()):
                sides = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
                facts = {**_flags(image, row), **_score(image, row)}
                regions.append(
                    {
                        "shape_attributes": {
                            "name": "rect",
                            **{key: number(side) for key, side in sides.items()},
                        },
                        "region_attributes": {
                            "class": data.class_names[image.labels[row] - 1],
                            **{key: str(value) for key, value in facts.items()},
                        },
                    }
                )
            file = escape_name(places.relative(image))
            # VIA joins name and bytes of a file into its key; -1 where the bytes aren't known
            entries[f"{file}-1"] = {
                "filename": file, "size": -1, "regions": regions, "file_attributes": {},
            }  # fmt: skip
        yield f"{name}.json", _json(entries)


def cvat_files(data: LabelledSet, places: Places) -> Files:
    """Write "CVAT for images 1.1", a file for each set; flags are attributes of a box."""
    for name, images in data.parts("annotations"):
        root = ElementTree.Element("annotations")
        ElementTree.SubElement(root, "version").text = "1.1"
        for k, image in enumerate(images):
            facts = {"id": k, "name": escape_name(places.relative(image))}
            sides = {"width": image.width, "height": image.height}
            entry = ElementTree.SubElement(root, "image", _texts(facts | sides))
            for row, box in enumerate(image.boxes.tolist()):
                corners = dict(zip(("xtl", "ytl", "xbr", "ybr"), map(number, box), strict=True))
                label = escape_name(data.class_names[image.labels[row] - 1])
                about = {"label": label, "source": "manual", "occluded": 0, "z_order": 0}
                shape = ElementTree.SubElement(entry, "box", _texts(about | corners))
                for key in _flags(image, row):
                    ElementTree.SubElement(shape, "attribute", name=key).text = "true"
        ElementTree.indent(root)
        yield f"{name}.xml", (ElementTree.tostring(root, encoding="unicode") + "\n").encode()


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}


def label_studio_files(data: LabelledSet, places: Places) -> Files:
    """Write Label Studio's tasks, a file for each set, and the labelling interface.

    Labels become annotations, detections predictions.
    """
    for name, images in data.parts("tasks"):
        tasks = []
        for image in images:
            scores = (
                image.scores.tolist() if image.scores is not None else [None] * len(image.boxes)
            )
            rows = zip(image.boxes.tolist(), image.labels.tolist(), scores, strict=True)
            regions = [
                Region(box, data.class_names[label - 1], score=score) for box, label, score in rows
            ]
            model = None if image.scores is None else "sppdet"
            tasks.append(task(image, regions, model=model, path=places.path(image)))
        yield f"{name}.json", _json(tasks)
    yield "label_studio.xml", labelling_interface(data.class_names).encode()


def _flags(image: LabelledImage, row: int, difficult: str = "difficult") -> dict[str, int]:
    """List the flags that are set."""
    flags = {difficult: image.difficult[row], "truncated": image.truncated[row]}
    return {key: 1 for key, value in flags.items() if value}


def _score(image: LabelledImage, row: int) -> dict[str, float]:
    return {} if image.scores is None else {"score": float(f"{image.scores[row]:.9g}")}


def _csv(rows: list[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _json(content: Any) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()
