"""Every kind of input of `sppdet detect`, one command each, and what is found in it.

    python benchmarks/inputs.py SPPDET RUN IMAGES [--work FOLDER] [--only TEXT]

SPPDET is the program to call, such as that of a fresh environment with the wheel (see scripts/outputs);
RUN a trained run, IMAGES a folder of JPEGs. Prints a Markdown table with images and objects as
pycocotools reads them from `detections.json`, and of a video what ffprobe says; an input with another
number of images than it has, or where the same pixels have other detections than as files, ends the
work with status 1. Needs the extra `dev` and ffmpeg.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import io
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pillow_heif
from outputs import call, count_coco, run_table
from PIL import Image

_COUNT = 6  # images of each input that has several
_FRAMES = 20


@dataclass(frozen=True)
class Row:
    """An input: the words, the number of its images, and whether its pixels are those of IMAGES."""

    words: str
    images: int
    same: bool = True
    stdin: Path | None = None


def main() -> None:
    run_table(table, __doc__ or "", ("sppdet", "run", "images"))


def table(args: argparse.Namespace, work: Path) -> int:
    """Print the table; returns the number of inputs that were read wrongly."""
    files = sorted(args.images.rglob("*.jpg"))[:_COUNT]
    if len(files) < _COUNT:
        sys.exit(f"{args.images}: {len(files)} images .jpg, expected {_COUNT} or more")
    given = work / "given"
    make_inputs(given, files)
    model = work / "model.sppdet"
    call(args.sppdet, ["export", args.run, model])
    call(args.sppdet, ["detect", args.run, given / "photos", "--out", work / "base"])
    wanted = detections(work / "base")
    port = serve(given / "photos")
    print("| command | images, objects | read by |\n|---|---|---|")
    wrong = 0
    for number, row in enumerate(row for row in rows(given, port) if args.only in row.words):
        out = work / f"{number:02d}"
        words = [*row.words.split(" "), "--out", str(out)]
        paths = {"RUN": str(args.run), "model.sppdet": str(model)}
        replaced = [paths.get(word, word.replace("IN/", f"{given}/")) for word in words]
        call(args.sppdet, replaced, stdin=row.stdin)
        with contextlib.redirect_stdout(io.StringIO()):  # what pycocotools says
            images, objects = count_coco(out / "detections.json")
        right = images == row.images
        if row.same:
            right &= all(found == wanted[name] for name, found in detections(out).items())
        readers = "pycocotools"
        if video := next((out / "images").glob("*.mp4"), None):
            frames, codec = probe(video)
            right &= frames == row.images
            readers += f"; ffprobe: {frames} frames, {codec}"
        wrong += not right
        shown = row.words.replace(f":{port}", "")
        piped = f"cat IN/{row.stdin.relative_to(given)} \\| " if row.stdin else ""
        said = f"{images}, {objects}" + ("" if right else f": wrong, expected {row.images}")
        print(f"| `{piped}sppdet {shown} --out OUT` | {said} | {readers} |", flush=True)
    return wrong


def rows(given: Path, port: int) -> list[Row]:
    """List the inputs."""
    first = next((given / "photos").glob("*.jpg"))
    return [
        Row(f"detect RUN IN/photos/{first.name}", 1),
        Row("detect RUN IN/photos", _COUNT),
        Row("detect model.sppdet IN/photos", _COUNT),
        Row("detect RUN IN/photos/*.jpg", _COUNT),  # as a shell passes it on in quotes
        Row("detect RUN IN/**/*.jpg", _COUNT),
        Row("detect RUN @IN/list.txt", _COUNT),
        Row("detect RUN IN/list.txt", _COUNT),
        Row("detect RUN IN/circle", _COUNT),
        Row("detect RUN -", 1, same=False, stdin=first),
        Row(f"detect RUN http://127.0.0.1:{port}/{first.name}", 1),
        Row("detect RUN IN/phone.heic", 1, same=False),
        Row("detect RUN IN/web.avif", 1, same=False),
        Row("detect RUN IN/clip.mp4", _FRAMES, same=False),
        Row("detect RUN IN/clip.mp4 --every 5", _FRAMES // 5, same=False),
        Row("detect RUN IN/photos --tile 200 --overlap 0.2", _COUNT, same=False),
    ]


def make_inputs(given: Path, files: Sequence[Path]) -> None:
    """Make a folder of every kind of input."""
    photos = given / "photos"
    photos.mkdir(parents=True)
    for number, path in enumerate(files):
        shutil.copy(path, photos / f"{number}.jpg")
    (given / "list.txt").write_text("# some photos\nphotos/*.jpg\n")
    (given / "circle").mkdir()
    (given / "circle" / "photos").symlink_to(photos)
    (given / "circle" / "back").symlink_to(given / "circle")
    pillow_heif.register_heif_opener()
    with Image.open(files[0]) as image:
        image.convert("RGB").save(given / "phone.heic")
        image.convert("RGB").save(given / "web.avif")
    made = ["ffmpeg", "-loglevel", "error", "-f", "lavfi", "-i", "testsrc2=size=320x240:rate=10"]
    subprocess.run([*made, "-frames:v", str(_FRAMES), given / "clip.mp4"], check=True)


def detections(out: Path) -> dict[str, list[Any]]:
    """Read the boxes, scores and classes of each image, by the image's own name."""
    content = json.loads((out / "detections.json").read_text())
    found: dict[str, list[Any]] = {Path(one["file_name"]).name: [] for one in content["images"]}
    for one in content["annotations"]:
        key = Path(one["file_name"]).name
        found[key].append([one["bbox"], one["score"], one["class"]])
    return found


def probe(video: Path) -> tuple[int, str]:
    """Count the frames of a video and name its codec, by ffprobe."""
    command = ["ffprobe", "-v", "error", "-count_frames", "-select_streams", "v", "-of", "json"]
    wanted = ["-show_entries", "stream=nb_read_frames,codec_name"]
    ended = subprocess.run([*command, *wanted, video], capture_output=True, text=True, check=True)
    (stream,) = json.loads(ended.stdout)["streams"]
    return int(stream["nb_read_frames"]), str(stream["codec_name"])


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def serve(folder: Path) -> int:
    """Serve a folder over HTTP from a thread; returns the port."""
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


if __name__ == "__main__":
    main()
