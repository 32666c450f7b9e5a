"""Write docs/notebook.ipynb: training from a dict, detection, and what detections can do.

Run `python docs/make_notebook.py`. The notebook is stored without outputs;
`tests/test_notebook.py` runs it.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

NOTEBOOK = Path(__file__).with_name("notebook.ipynb")

CELLS = [
    (
        "text",
        """
        # A detector in a minute

        This notebook paints some toys, trains a detector of them from a dict of settings, and shows what
        detections can do. It takes about a minute on two cores, downloads nothing, and writes into the
        folder that it runs in. It needs pandas beside sppdet (`pip install pandas`).

        For photos of your own see [From photos to a detector](photos.md): a folder of labelled images is
        all that `sppdet.train("photos", "runs/photos")` wants.
        """,
    ),
    (
        "code",
        """
        import csv
        from pathlib import Path

        import numpy as np
        import pandas as pd
        from PIL import Image, ImageDraw

        import sppdet
        """,
    ),
    (
        "text",
        """
        ## Images with labels

        Sixty images with balls, bricks and blossoms (*Blüten*) on a blurred ground, and a CSV file with a
        row for each object, as labelling tools write it.
        """,
    ),
    (
        "code",
        """
        COLOURS = {"ball": (210, 50, 40), "brick": (50, 80, 200), "Blüte": (215, 195, 40)}
        FOLDER = Path("toys")


        def paint(rng):
            ground = Image.fromarray(rng.integers(90, 200, (6, 8, 3), dtype=np.uint8))
            image, objects = ground.resize((320, 240), Image.Resampling.BICUBIC), []
            pen = ImageDraw.Draw(image)
            for column in rng.permutation(3)[: rng.integers(1, 4)]:
                side = int(rng.integers(44, 90))
                x = int(column * 105 + rng.integers(0, 105 - side))
                y = int(rng.integers(5, 235 - side))
                name, box = str(rng.choice(list(COLOURS))), (x, y, x + side, y + side)
                colour = tuple(int(c) for c in COLOURS[name] + rng.integers(-30, 30, 3))
                if name == "ball":
                    pen.ellipse(box, fill=colour)
                elif name == "brick":
                    pen.rectangle(box, fill=colour)
                else:
                    for angle in range(0, 360, 60):
                        pen.pieslice(box, angle, angle + 38, fill=colour)
                objects.append((name, box))
            noisy = np.asarray(image) + rng.normal(0, 6, (240, 320, 3))
            return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)), objects


        rng = np.random.default_rng(0)
        FOLDER.mkdir(exist_ok=True)
        with (FOLDER / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"])
            for k in range(60):
                image, objects = paint(rng)
                image.save(FOLDER / f"toys{k:02}.png")
                writer.writerows([f"toys{k:02}.png", 320, 240, name, *box] for name, box in objects)
        image
        """,
    ),
    (
        "text",
        """
        ## Training

        The settings are a dict with the sections of [a settings file](config.md); `format: auto` finds the
        CSV file and keeps a fifth of the images to test with. This small network starts at random, which is
        enough for toys: `{"base": "squeezenet_small", "data": ...}` takes a trained one.

        The same call goes on with an interrupted training, and does nothing where all is done.
        """,
    ),
    (
        "code",
        """
        settings = {
            "data": {"root": FOLDER, "format": "auto"},
            "backbone": {"name": "tiny", "weights": "none"},
            "scales": [200],
            "proposals": {"image_width": 200, "max_boxes": 300, "min_size": 12},
            "features": {"canonical_size": 80},
            "head": None,
            "finetune": None,
            "svm": {"layer": "pool5"},
        }


        def show(event, facts):
            if event == "stage ended":
                print(f"{facts['stage']:10} {facts['seconds']:5.1f} s")


        trained = sppdet.train(settings, "runs/toys", on_event=show)
        trained
        """,
    ),
    (
        "text",
        """
        The evaluation on the test images: the average precision of each class. Such toys are easy; the
        report `runs/toys/report.html` has curves, intervals and errors.
        """,
    ),
    (
        "code",
        """
        pd.DataFrame({"AP": {one.name: one.ap for one in trained.result.classes}}).round(3)
        """,
    ),
    (
        "text",
        """
        ## Detection

        `trained.load()` loads the detector, as `sppdet.Detector.load("runs/toys")` does later on. All
        detections come back, the improbable ones as well: an index selects some.
        """,
    ),
    (
        "code",
        """
        detector = trained.load()
        new, objects = paint(np.random.default_rng(13))
        found = detector(new)
        sure = found[found.probabilities > 0.5]
        print(f"{len(found)} detections, {len(sure)} of them probable; painted:")
        print(sorted(name for name, _ in objects))
        sure
        """,
    ),
    (
        "code",
        """
        for one in sure:
            print(f"{one.name:6} {one.probability:.2f}", [round(side) for side in one.box])
        """,
    ),
    (
        "text",
        """
        A list of images gives a list of detections; threads prepare the next image while the network
        runs on one. Paths, bytes, PIL images, arrays and tensors may be mixed. `plot()` returns a PIL
        image.
        """,
    ),
    (
        "code",
        """
        path = FOLDER / "toys07.png"
        several = detector([path, path.read_bytes(), Image.open(path), np.asarray(Image.open(path))])
        assert all(np.array_equal(one.boxes, several[0].boxes) for one in several)
        first = several[0]
        first[first.probabilities > 0.5].plot()
        """,
    ),
    (
        "text",
        """
        ## Tables and other libraries

        `to_pandas()` makes a table, `to_coco(image_id)` the results that pycocotools loads, and
        `to_supervision()` what the annotators and trackers of Roboflow's supervision take.
        """,
    ),
    (
        "code",
        """
        sure.to_pandas().round(2)
        """,
    ),
    (
        "code",
        """
        sure.to_coco(image_id=1)[:1]
        """,
    ),
]


def notebook() -> Any:
    """Make the notebook, without outputs."""
    cells = []
    for number, (kind, text) in enumerate(CELLS, start=1):
        make: Any = new_code_cell if kind == "code" else new_markdown_cell
        cells.append(make(textwrap.dedent(text).strip(), id=f"cell-{number:02}"))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


if __name__ == "__main__":
    NOTEBOOK.write_text(nbformat.writes(notebook()) + "\n", encoding="utf-8")
