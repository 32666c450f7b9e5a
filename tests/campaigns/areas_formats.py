"""Areas of the formats that labelling tools write: one file of a set is damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

import labelled_sets as sets
from campaigns.areas import JSON_TOKENS, Area, all_of, json_documents
from campaigns.verdict import judge
from campaigns.workspace import Workspace
from sppdet.config import Config
from sppdet.data_config import DataConfig
from sppdet.io.image_cache import ImageCache
from sppdet.io.splits import read_split
from sppdet.stages.settle import settle

_WORDS = (
    *("0", "1", "2", "-1", "0.5", "0.25", "1.0", "1e-3", "1e999", "nan", "inf", "0x1", "1_0"),
    *("50", "9" * 400, "cat", "²", "", "+.5"),
)
_TEXT_TOKENS = (
    *(b",", b";", b'"', b'""', b"\n", b"\r", b"\t", b"\x00", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf"),
    *(
        b"nan",
        b"1e999",
        b"-1",
        b"..",
        b"/",
        b"\\",
        b"!!python/none",
        b"&a",
        b"*a",
        b"{",
        b"[" * 3000,
    ),
    *(
        b"<box ",
        b"<!DOCTYPE a>",
        b"&#0;",
        b'rotation="x"',
        b"{}",
        b"0 0.5 0.5 0.1 0.1",
        b":",
        b"=" * 99,
    ),
)


def format_areas(space: Workspace) -> list[Area]:
    known = ImageCache()

    def area(
        name: str,
        write: Callable[[Path], None],
        file: str,
        documents: st.SearchStrategy[bytes] | None,
        tokens: tuple[bytes, ...] = _TEXT_TOKENS,
    ) -> Area:
        root = space.root / f"fuzz-{name}"
        write(root)
        path = root / file
        seed = path.read_bytes()

        def read(format: Any, on_error: Any) -> None:
            data = DataConfig(format=format, root=[root], test=None, on_error=on_error)
            config = settle(Config(data=data), None)
            read_split(config.data, "train", None, known, workers=1)

        formats = ("auto", {"darknet": "yolo"}.get(name.partition("-")[0], name.partition("-")[0]))

        def check(content: bytes) -> str | None:
            path.write_bytes(content)
            return judge(
                all_of(*(lambda f=f, e=e: read(f, e) for f in formats for e in ("stop", "skip"))),
                "",
            )

        suffix = Path(file).suffix
        return Area(name, suffix, [seed], check, documents, tokens)

    scratch = space.root / "fuzz-seeds"

    def document(write: Callable[[Path], None], file: str) -> Any:
        write(scratch)
        data = json.loads((scratch / file).read_bytes())
        shutil.rmtree(scratch)
        return data

    line = st.lists(st.sampled_from(_WORDS), max_size=11).map(" ".join)
    labels = st.lists(line, max_size=4).map(lambda lines: "\n".join(lines).encode())
    cells = st.lists(st.sampled_from((*_WORDS, "imgs/a.png", "b.png", "path", "x1")), max_size=8)
    rows = st.lists(cells.map(",".join), max_size=4).map(lambda lines: "\n".join(lines).encode())
    a, via = "json/a.json", "via_region_data.json"
    return [
        area("yolo-labels", sets.labelimg_yolo, "a.txt", labels),
        area("yolo-data", sets.ultralytics, "animals.yaml", None),
        area("darknet-data", sets.cvat_yolo, "obj.data", None),
        area("labelme", sets.labelme, a, json_documents(document(sets.labelme, a)), JSON_TOKENS),
        area("via", sets.via_json, via, json_documents(document(sets.via_json, via)), JSON_TOKENS),
        area("via-csv", sets.via_csv, "via_region_data.csv", None),
        area("csv", sets.retinanet, "annotations.csv", rows),
        area("cvat", sets.cvat_images, "annotations.xml", None),
        area("xml", sets.labelimg_voc, "a.xml", None),
    ]
