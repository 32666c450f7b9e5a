"""Small sets as labelling tools write them, after the tools' documentation: the same boxes in each.

Every function writes one layout into an empty folder. `SETS` is what all of them have: six images, of which
"f" has no object. Boxes are whole pixels, 0-based, half-open.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from images import save_image
from sppdet.types import ImageArray

Object = tuple[str, int, int, int, int]
WIDTH, HEIGHT = 120, 90
CLASSES = ("cat", "dog", "small bird")
SETS: dict[str, list[Object]] = {
    "a": [("cat", 10, 20, 50, 60)],
    "b": [("dog", 0, 0, 120, 90), ("cat", 1, 2, 4, 8)],
    "c": [("small bird", 100, 70, 120, 90)],
    "d": [("dog", 33, 21, 78, 55)],
    "e": [("cat", 60, 5, 61, 85), ("small bird", 7, 9, 40, 44)],
    "f": [],
}
TRAIN, TEST = ("a", "b", "c", "f"), ("d", "e")


def noise(name: str) -> ImageArray:
    """Blocks of random colours, so that no two images are alike."""
    rng = np.random.default_rng(list(name.encode()))
    coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(10, axis=0).repeat(10, axis=1))


def put_images(folder: Path, names: Sequence[str], suffix: str = ".png") -> None:
    for name in names:
        save_image(folder / f"{name}{suffix}", noise(name))


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _voc_xml(name: str, *, filename: str, folder: str = "x") -> str:
    objects = "".join(
        f"<object><name>{item}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
        f"<bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"
        "</object>"
        for item, x1, y1, x2, y2 in SETS[name]
    )
    return (
        f"<annotation><folder>{folder}</folder><filename>{filename}</filename><path>C:\\x\\{filename}</path>"
        f"<source><database>Unknown</database></source><size><width>{WIDTH}</width><height>{HEIGHT}</height>"
        f"<depth>3</depth></size><segmented>0</segmented>{objects}</annotation>"
    )


def _yolo_lines(name: str) -> str:
    lines = []
    for item, x1, y1, x2, y2 in SETS[name]:
        values = (
            *((x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT),
            *((x2 - x1) / WIDTH, (y2 - y1) / HEIGHT),
        )
        lines.append(" ".join([str(CLASSES.index(item)), *(f"{value:.6f}" for value in values)]))
    return "".join(f"{line}\n" for line in lines)


def _coco(names: Sequence[str], file_name: Callable[[str], str], first: int = 1) -> dict[str, Any]:
    images = [
        {"id": k, "file_name": file_name(name), "width": WIDTH, "height": HEIGHT}
        for k, name in enumerate(names)
    ]
    annotations = [
        {"image_id": k, "category_id": CLASSES.index(item) + first, "bbox": [x1, y1, x2 - x1, y2 - y1],
         "area": (x2 - x1) * (y2 - y1), "iscrowd": 0, "segmentation": []}
        for k, name in enumerate(names) for item, x1, y1, x2, y2 in SETS[name]
    ]  # fmt: skip
    annotations = [{"id": k, **entry} for k, entry in enumerate(annotations, start=1)]
    categories = [{"id": k, "name": name} for k, name in enumerate(CLASSES, start=first)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def pascal(root: Path) -> None:
    put_images(root / "JPEGImages", list(SETS))
    for name in SETS:
        _put(root / "Annotations" / f"{name}.xml", _voc_xml(name, filename=f"{name}.png"))
    for set_name, names in (("trainval", TRAIN), ("test", TEST)):
        _put(root / "ImageSets" / "Main" / f"{set_name}.txt", "\n".join(names) + "\n")
    _put(
        root / "ImageSets" / "Main" / "cat_trainval.txt", "\n".join(f"{n}  1" for n in TRAIN) + "\n"
    )


def labelimg_voc(root: Path) -> None:
    put_images(root, list(SETS))
    for name in SETS:
        _put(root / f"{name}.xml", _voc_xml(name, filename=f"{name}.png"))


def labelimg_sibling(root: Path) -> None:
    """Annotations saved into a folder of their own."""
    put_images(root / "photos", list(SETS))
    for name in SETS:
        _put(root / "labels" / f"{name}.xml", _voc_xml(name, filename=f"{name}.png"))


def labelimg_yolo(root: Path) -> None:
    put_images(root, list(SETS))
    for name in SETS:
        _put(root / f"{name}.txt", _yolo_lines(name))
    _put(root / "classes.txt", "".join(f"{name}\n" for name in CLASSES))


def _roboflow(name: str) -> str:
    return f"{name}_png.rf.{name * 8}"


def _roboflow_folders(
    root: Path, write: Callable[[Path, Sequence[str]], None], images: str = ""
) -> None:
    for folder, names in (("train", TRAIN), ("valid", TEST)):
        for name in names:
            save_image(root / folder / images / f"{_roboflow(name)}.png", noise(name))
        write(root / folder, names)
    _put(root / "README.dataset.txt", "a set\n")


def roboflow_voc(root: Path) -> None:
    def write(folder: Path, names: Sequence[str]) -> None:
        for name in names:
            text = _voc_xml(name, filename=f"{_roboflow(name)}.png", folder="")
            _put(folder / f"{_roboflow(name)}.xml", text)

    _roboflow_folders(root, write)


def roboflow_coco(root: Path) -> None:
    def write(folder: Path, names: Sequence[str]) -> None:
        data = _coco(names, lambda name: f"{_roboflow(name)}.png")
        data["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
        _put(folder / "_annotations.coco.json", json.dumps(data))

    _roboflow_folders(root, write)


def roboflow_yolo(root: Path) -> None:
    def write(folder: Path, names: Sequence[str]) -> None:
        for name in names:
            _put(folder / "labels" / f"{_roboflow(name)}.txt", _yolo_lines(name))

    _roboflow_folders(root, write, "images")
    _put(
        root / "data.yaml",
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 3\n"
        f"names: {list(CLASSES)}\n\nroboflow:\n  workspace: w\n  project: p\n  version: 1\n",
    )


def _csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows(rows)


def _retinanet_rows(name: str, file: str) -> list[list[Any]]:
    rows: list[list[Any]] = [[file, *box, item] for item, *box in SETS[name]]
    return rows or [[file, "", "", "", "", ""]]


def roboflow_retinanet(root: Path) -> None:
    def write(folder: Path, names: Sequence[str]) -> None:
        _csv(
            folder / "_annotations.csv",
            [row for name in names for row in _retinanet_rows(name, f"{_roboflow(name)}.png")],
        )
        _csv(folder / "_classes.csv", [[name, k] for k, name in enumerate(CLASSES)])

    _roboflow_folders(root, write)


def roboflow_tensorflow(root: Path) -> None:
    def write(folder: Path, names: Sequence[str]) -> None:
        rows: list[list[Any]] = [
            ["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"]
        ]
        for name in names:
            file = f"{_roboflow(name)}.png"
            rows += [[file, WIDTH, HEIGHT, item, *box] for item, *box in SETS[name]]
            rows += [[file, WIDTH, HEIGHT, "", "", "", "", ""]] if not SETS[name] else []
        _csv(folder / "_annotations.csv", rows)

    _roboflow_folders(root, write)


def cvat_voc(root: Path) -> None:
    put_images(root / "JPEGImages", list(SETS))
    for name in SETS:
        _put(root / "Annotations" / f"{name}.xml", _voc_xml(name, filename=f"{name}.png"))
    _put(root / "ImageSets" / "Main" / "default.txt", "\n".join(SETS) + "\n")
    _put(root / "labelmap.txt", "# label:color_rgb:parts:actions\ncat:1,2,3::\n")


def cvat_coco(root: Path) -> None:
    put_images(root / "images" / "default", list(SETS))
    data = _coco(list(SETS), lambda name: f"{name}.png")
    _put(root / "annotations" / "instances_default.json", json.dumps(data))


def cvat_yolo(root: Path) -> None:
    for set_name, names in (("train", TRAIN), ("valid", TEST)):
        folder = root / f"obj_{set_name}_data"
        put_images(folder, names)
        for name in names:
            _put(folder / f"{name}.txt", _yolo_lines(name))
        _put(
            root / f"{set_name}.txt",
            "".join(f"data/obj_{set_name}_data/{name}.png\n" for name in names),
        )
    _put(root / "obj.names", "".join(f"{name}\n" for name in CLASSES))
    _put(
        root / "obj.data",
        "classes = 3\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\n"
        "backup = backup/\n",
    )


def cvat_ultralytics(root: Path) -> None:
    put_images(root / "images" / "train", list(SETS))
    for name in SETS:
        _put(root / "labels" / "train" / f"{name}.txt", _yolo_lines(name))
    _put(root / "train.txt", "".join(f"images/train/{name}.png\n" for name in SETS))
    names = "".join(f"  {k}: {name}\n" for k, name in enumerate(CLASSES))
    _put(root / "data.yaml", f"path: ./ # dataset root dir\ntrain: train.txt\n\nnames:\n{names}")


def cvat_images(root: Path) -> None:
    put_images(root / "images", list(SETS))
    images = ""
    for k, name in enumerate(SETS):
        boxes = "".join(
            f'<box label="{item}" source="manual" occluded="0" xtl="{x1:.2f}" ytl="{y1:.2f}" '
            f'xbr="{x2:.2f}" ybr="{y2:.2f}" z_order="0"><attribute name="difficult">false</attribute></box>'
            for item, x1, y1, x2, y2 in SETS[name]
        )
        images += (
            f'<image id="{k}" name="{name}.png" width="{WIDTH}" height="{HEIGHT}">{boxes}</image>'
        )
    _put(
        root / "annotations.xml",
        f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta></meta>{images}'
        "</annotations>",
    )


def _uploaded(name: str) -> str:
    return f"0a1b2c3{name}-{name}.png"


def label_studio_coco(root: Path) -> None:
    """As written on Windows."""
    for name in SETS:
        save_image(root / "images" / _uploaded(name), noise(name))
    data = _coco(list(SETS), lambda name: f"images\\{_uploaded(name)}", first=0)
    _put(root / "result.json", json.dumps(data, indent=2))


def label_studio_coco_elsewhere(root: Path) -> None:
    """The images are the originals; the file has the server's paths."""
    put_images(root / "photos", list(SETS))
    data = _coco(
        list(SETS), lambda name: f"/label-studio/data/media/upload/3/{_uploaded(name)}", first=0
    )
    _put(root / "result.json", json.dumps(data))


def label_studio_yolo(root: Path) -> None:
    for name in SETS:
        save_image(root / "images" / _uploaded(name), noise(name))
        _put(root / "labels" / _uploaded(name).replace(".png", ".txt"), _yolo_lines(name))
    _put(root / "classes.txt", "\n".join(CLASSES))
    notes = {
        "categories": [{"id": k, "name": n} for k, n in enumerate(CLASSES)],
        "info": {"year": 2026},
    }
    _put(root / "notes.json", json.dumps(notes))


def labelme(root: Path) -> None:
    put_images(root / "photos", list(SETS))
    for name in SETS:
        shapes: list[dict[str, Any]] = []
        for k, (item, x1, y1, x2, y2) in enumerate(SETS[name]):
            shape: dict[str, Any] = {
                "label": item,
                "group_id": None,
                "flags": {},
                "description": "",
            }
            if k == 0:  # drawn from the lower right
                shape |= {
                    "points": [[x2 + 0.0, y2 + 0.0], [x1 + 0.0, y1 + 0.0]],
                    "shape_type": "rectangle",
                }
            else:
                corners = [[x1, y1], [x2, (y1 + y2) / 2], [x1, y2]]
                shape |= {"points": corners, "shape_type": "polygon"}
            shapes.append(shape)
        data: dict[str, Any] = {
            "version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": f"..\\photos\\{name}.png",
            "imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH,
        }  # fmt: skip
        _put(root / "json" / f"{name}.json", json.dumps(data, indent=2))


def _via_regions(name: str) -> list[dict[str, Any]]:
    return [
        {
            "shape_attributes": {
                "name": "rect",
                "x": x1,
                "y": y1,
                "width": x2 - x1,
                "height": y2 - y1,
            },
            "region_attributes": {"animal": item},
        }
        for item, x1, y1, x2, y2 in SETS[name]
    ]


def _via_images() -> dict[str, Any]:
    return {
        f"{name}.png1234": {
            "filename": f"{name}.png", "size": 1234, "regions": _via_regions(name), "file_attributes": {},
        }
        for name in SETS
    }  # fmt: skip


def via_json(root: Path) -> None:
    put_images(root, list(SETS))
    _put(root / "via_region_data.json", json.dumps(_via_images()))


def via_project(root: Path) -> None:
    put_images(root / "img", list(SETS))
    data = {
        "_via_settings": {"core": {"default_filepath": ""}, "project": {"name": "p"}},
        "_via_img_metadata": _via_images(),
        "_via_attributes": {"region": {"animal": {"type": "text"}}, "file": {}},
    }
    _put(root / "via_project_1Jan2026.json", json.dumps(data))


def via_csv(root: Path) -> None:
    put_images(root, list(SETS))
    columns = "filename file_size file_attributes region_count region_id region_shape_attributes"
    rows: list[list[Any]] = [[*columns.split(), "region_attributes"]]
    for name in SETS:
        regions = _via_regions(name)
        for k, region in enumerate(regions):
            shape, attributes = (
                json.dumps(region[f"{kind}_attributes"]) for kind in ("shape", "region")
            )
            rows.append([f"{name}.png", 1234, "{}", len(regions), k, shape, attributes])
        if not regions:
            rows.append([f"{name}.png", 1234, "{}", 0, 0, "{}", "{}"])
    _csv(root / "via_region_data.csv", rows)


def ultralytics(root: Path) -> None:
    for folder, names in (("train", TRAIN), ("val", TEST)):
        put_images(root / "images" / folder, names)
        for name in names:
            if SETS[name]:  # an image without objects needs no file
                _put(root / "labels" / folder / f"{name}.txt", _yolo_lines(name))
    listed = "".join(f"  {k}: {name}\n" for k, name in enumerate(CLASSES))
    _put(
        root / "animals.yaml",
        f"path: ../datasets/animals\ntrain: images/train\nval: images/val\ntest:\n\nnames:\n{listed}\n"
        "download: |\n  import os\n  os.system('false')\n",
    )


def ultralytics_segments(root: Path) -> None:
    ultralytics(root)
    for path in sorted((root / "labels").rglob("*.txt")):
        lines = []
        for number, (item, x1, y1, x2, y2) in enumerate(SETS[path.stem]):
            corners = [(x1, y1), (x2, y1), (x2, y2), (x1, (y1 + y2) / 2), (x1, y2)][
                : 5 - number % 2
            ]
            corners = corners if len(corners) == 5 else [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
            points = (f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in corners)
            lines.append(" ".join([str(CLASSES.index(item)), *points]))
        path.write_text("\n".join(lines), encoding="utf-8")


def coco(root: Path) -> None:
    for set_name, names in (("train2017", TRAIN), ("val2017", TEST)):
        put_images(root / set_name, names)
        data = _coco(names, lambda name: f"{name}.png")
        _put(root / "annotations" / f"instances_{set_name}.json", json.dumps(data))
        _put(root / "annotations" / f"person_keypoints_{set_name}.json", json.dumps(data))
        _put(
            root / "annotations" / f"captions_{set_name}.json",
            json.dumps({"images": [], "annotations": []}),
        )


def retinanet(root: Path) -> None:
    put_images(root / "imgs", list(SETS))
    rows = [row for name in SETS for row in _retinanet_rows(name, f"imgs/{name}.png")]
    _csv(root / "annotations.csv", rows)
    _csv(root / "classes.csv", [[name, k] for k, name in enumerate(CLASSES)])


WRITERS: dict[str, tuple[Callable[[Path], None], str, bool]] = {
    "Pascal VOC": (pascal, "voc", True),
    "LabelImg, VOC": (labelimg_voc, "xml", False),
    "LabelImg, VOC in a folder": (labelimg_sibling, "xml", False),
    "LabelImg, YOLO": (labelimg_yolo, "yolo", False),
    "Roboflow, VOC": (roboflow_voc, "xml", True),
    "Roboflow, COCO": (roboflow_coco, "coco", True),
    "Roboflow, YOLO": (roboflow_yolo, "yolo", True),
    "Roboflow, RetinaNet": (roboflow_retinanet, "csv", True),
    "Roboflow, TensorFlow": (roboflow_tensorflow, "csv", True),
    "CVAT, VOC": (cvat_voc, "voc", False),
    "CVAT, COCO": (cvat_coco, "coco", False),
    "CVAT, YOLO": (cvat_yolo, "yolo", True),
    "CVAT, Ultralytics": (cvat_ultralytics, "yolo", False),
    "CVAT for images": (cvat_images, "cvat", False),
    "Label Studio, COCO": (label_studio_coco, "coco", False),
    "Label Studio, COCO of a server": (label_studio_coco_elsewhere, "coco", False),
    "Label Studio, YOLO": (label_studio_yolo, "yolo", False),
    "labelme": (labelme, "labelme", False),
    "VIA, JSON": (via_json, "via", False),
    "VIA, project": (via_project, "via", False),
    "VIA, CSV": (via_csv, "via", False),
    "Ultralytics": (ultralytics, "yolo", True),
    "Ultralytics, outlines": (ultralytics_segments, "yolo", True),
    "COCO": (coco, "coco", True),
    "RetinaNet": (retinanet, "csv", False),
}
"""The layouts by their tools: the function, the format that `data.format: auto` finds, and whether it has a
split."""
