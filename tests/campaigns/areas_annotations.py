"""Areas of annotations and of detections."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from campaigns.areas import JSON_TOKENS, Area, all_of, json_documents, reader
from campaigns.mutation import NUMBERS, WORDS, mutants, xml_text
from campaigns.verdict import judge
from campaigns.workspace import Workspace
from sppdet.io.dataset import load_dataset
from sppdet.io.detection_files import read_detections
from sppdet.io.image_cache import ImageCache
from sppdet.io.settings import load_config
from sppdet.io.splits import read_split
from sppdet.stages.evaluate_files import evaluate_files
from sppdet.types import Dataset

_XML_TOKENS = (
    *(
        b"<object>",
        b"</object>",
        b"<name>",
        b"<xmin>",
        b"<",
        b">",
        b"&",
        b"&#0;",
        b"&#xD800;",
        b"&lt;",
    ),
    *(b"<?xml version='1.0' encoding='utf-16'?>", b"<?xml version='1.0' encoding='nonsense'?>"),
    *(
        b"<!DOCTYPE a [<!ENTITY b 'c'>]>",
        b"<![CDATA[",
        b"]]>",
        b"<!--",
        b"-->",
        b"nan",
        b"1e999",
        b"-1",
    ),
    *(
        b"<a>" * 3000,
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"9" * 5000,
        b"\xc2\xb2",
        b"yes",
        b"1.5",
    ),
)


def annotation_areas(space: Workspace) -> list[Area]:
    known = ImageCache()
    xml = space.voc / "Annotations"
    ids = sorted(path.stem for path in xml.iterdir())
    sets = space.voc / "ImageSets" / "Main"
    (sets / "two.txt").write_text(f"{ids[0]}\n{ids[1]}\n")

    def load(format: Any, root: Path, name: str, on_error: Any) -> Dataset:
        images = space.voc / "JPEGImages"
        return load_dataset(
            format=format, roots=[root], sets=[name], images=images, class_names=None,
            on_error=on_error, read_images=True, known=known,
        )  # fmt: skip

    def both(format: Any, root: Path, name: str) -> Callable[[], None]:
        return all_of(
            lambda: load(format, root, name, "stop"),
            lambda: load(format, root, name, "skip"),
        )

    def check_xml(data: bytes) -> str | None:
        (xml / f"{ids[0]}.xml").write_bytes(data)
        problem = judge(lambda: load("voc", space.voc, "two", "stop"), f"{ids[0]}.xml")
        if problem is None:  # the other file is good: skipping must find it
            try:
                load("voc", space.voc, "two", "skip")
            except Exception as error:
                return f"on_error: skip ends with {type(error).__name__}: {error!s:.80}"
        return problem

    coco = space.coco / "annotations" / "instances_fuzz.json"
    document = json.loads((space.coco / "annotations" / "instances_trainval.json").read_bytes())
    document["annotations"] = document["annotations"][:6]
    document["images"] = document["images"][:3]
    names = json.loads(json.dumps(document))
    names["categories"][0]["name"] += " "
    for entry in names["annotations"]:
        entry |= {"ignore": 0, "segmentation": [], "iscrowd": False}
    annotation = _xml_tree((xml / f"{ids[0]}.xml").read_text())
    config = space.root / "fuzz-coco.yaml"
    data = {
        "format": "coco", "root": "coco", "images": "set/JPEGImages", "train": "fuzz", "test": "fuzz",
        "on_error": "skip",
    }  # fmt: skip
    config.write_text(yaml.safe_dump({"base": "small.yaml", "data": data}))
    found = space.root / "fuzz-comp4"
    found.mkdir()
    for name in ("disc", "square"):
        (found / f"comp4_det_test_{name}.txt").write_text(f"{ids[0]} 0.5 1 1 20 20\n")

    def check_coco(data: bytes) -> str | None:
        coco.write_bytes(data)
        problem = judge(both("coco", space.coco, "fuzz"), "")
        if problem is None and _one_in(12, data):  # and what was read can be scored and written
            out = space.root / "fuzz-out"
            problem = judge(
                lambda: evaluate_files(config, found, out, split="test", metric="voc07"), ""
            )
        return problem

    return [
        Area(
            "voc-xml", ".xml", [(xml / f"{name}.xml").read_bytes() for name in ids[:3]], check_xml,
            mutants([annotation], most=3).map(lambda tree: xml_text(tree).encode("utf-8", "surrogatepass")),
            _XML_TOKENS,
        ),
        Area(
            "voc-set", ".txt", [b"\n".join(name.encode() for name in ids[:3]), b"a 1\nb -1\nc 0\n"],
            reader(sets / "fuzz.txt", both("voc", space.voc, "fuzz"), name=""),
            _lines([*ids[:3], *WORDS], [" 1", " -1", " 0", "", " ", "\t1"]),
            [word.encode("utf-8", "surrogatepass") for word in WORDS],
        ),
        Area(
            "coco", ".json", [json.dumps(document).encode(), json.dumps(names, indent=1).encode()],
            check_coco, json_documents(document, names), JSON_TOKENS, weight=2,
        ),
    ]  # fmt: skip


def detection_areas(space: Workspace) -> list[Area]:
    settings = load_config(space.settings)
    dataset = read_split(settings.data, "test", None, None, workers=1)
    names, ids = dataset.class_names, [image.id for image in dataset.images]
    folder = space.root / "fuzz-detections"
    folder.mkdir()
    results = [
        {"image_id": image, "category_id": k, "bbox": [1.5, 2, 30, 40.25], "score": -0.5}
        for k, image in enumerate(ids, start=1)
    ]
    files = [
        {**entry, "file_name": f"{image}.jpg"} for entry, image in zip(results, ids, strict=True)
    ]
    written = {
        "images": [{"id": k, "file_name": f"{name}.jpg", "path": f"x/{name}.jpg", "width": 9, "height": 9}
                   for k, name in enumerate(ids, start=1)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names, start=1)],
        "annotations": [{**entry, "image_id": k, "id": k, "area": 3.0, "class": names[0]}
                        for k, entry in enumerate(results, start=1)],
    }  # fmt: skip
    out = space.root / "fuzz-out"

    def check_json(name: str) -> Callable[[bytes], str | None]:
        path = folder / name

        def check(data: bytes) -> str | None:
            path.write_bytes(data)
            problem = judge(lambda: read_detections(path, dataset), path.name)
            if problem is None and _one_in(12, data):
                problem = judge(
                    lambda: evaluate_files(space.settings, path, out, split="test", metric="voc10")
                )
            return problem

        return check

    comp4 = space.root / "fuzz-lines"
    comp4.mkdir()
    lines = [f"{image} 0.25 1 2 30.5 40" for image in ids]
    number = st.one_of(
        st.sampled_from([str(n) for n in NUMBERS if abs(n) < 1e30 or n != n] + ["1e400", "-inf"]),
        st.floats().map(str),
    )
    line = st.tuples(st.sampled_from([*ids, *WORDS]), number, number, number, number, number).map(
        " ".join
    )
    return [
        Area(
            "coco-results", ".json", [json.dumps(results).encode(), json.dumps(files).encode()],
            check_json("results.json"), json_documents(results, files), JSON_TOKENS,
        ),
        Area(
            "detections-json", ".json", [json.dumps(written, indent=1).encode()],
            check_json("detections.json"), json_documents(written), JSON_TOKENS,
        ),
        Area(
            "comp4", ".txt", ["\n".join(lines).encode()],
            reader(
                comp4 / f"comp4_det_test_{names[0]}.txt", lambda: read_detections(comp4, dataset),
                name=comp4.name,  # what is wrong is counted over all files
            ),
            st.one_of(_lines(lines, [""]), st.lists(line, max_size=5).map(_joined)),
            [b"nan", b"inf", b"-1", b"1e999", b"\x00", b"\xff", b" ", b"\n", b"0x1", b"1_0"],
        ),
    ]  # fmt: skip


def _lines(lines: Sequence[str], ends: Sequence[str]) -> st.SearchStrategy[bytes]:
    line = st.tuples(st.sampled_from(lines), st.sampled_from(ends)).map("".join)
    return st.lists(line, max_size=6).map(_joined)


def _joined(lines: Sequence[str]) -> bytes:
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _one_in(count: int, data: bytes) -> bool:
    """The same answer for the same input, yes for one in `count`: for what takes long."""
    return hashlib.blake2b(data).digest()[0] % count == 0


def _xml_tree(text: str) -> Any:
    from xml.etree import ElementTree

    def node(element: ElementTree.Element) -> dict[str, Any]:
        children = [node(child) for child in element]
        return {
            "tag": element.tag,
            "attributes": "",
            "text": (element.text or "").strip(),
            "children": children,
        }

    return node(ElementTree.fromstring(text))
