"""Draw mAP against CPU seconds of training: the presets' rows of a file, and measured points of YOLOv5n.

    python docs/plot_cost.py docs/figures/presets.csv docs/figures/cost.svg

The file has the lines of `benchmarks/laptop.py --csv`: training images, preset, mAP in per cent, CPU
seconds of the whole command, evaluation included.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

# Measured elsewhere with one thread: fine-tuned from COCO's weights, 416 px, the settings as they come,
# same images and scorer; CPU seconds are the middle of the range by the machine's load.
YOLOV5N: dict[int, list[tuple[float, float]]] = {
    20: [(205, 28.9), (403, 50.4)],
    100: [(290, 35.5), (540, 67.5), (1080, 78.3)],
    530: [(290, 41.0), (570, 64.0), (950, 79.3), (1900, 87.5)],
}
COLOURS = {20: "#b4581a", 100: "#1f6f8b", 530: "#4a3a8c"}
# of the names in points, beside the lines; accurate is next to balanced
OFFSETS = {"fast": (-8, 6), "balanced": (2, -11), "accurate": (6, -3)}


def main(rows: Path, target: Path) -> None:
    """Draw the plot."""
    found: dict[int, list[tuple[float, float, str]]] = {}
    with rows.open(newline="") as file:
        for count, preset, score, seconds in csv.reader(file):
            found.setdefault(int(count), []).append((float(seconds), float(score), preset))
    plt.rcParams["svg.hashsalt"] = "sppdet"  # the same bytes each time
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for images, colour in COLOURS.items():
        own = sorted(found.get(images, []))
        x, y = [p[0] for p in own], [p[1] for p in own]
        axes.plot(x, y, "o-", color=colour, label=f"sppdet, {images} images")
        for cost, ap, preset in own:
            at, offset = (cost, ap), OFFSETS[preset]
            axes.annotate(preset, at, offset, textcoords="offset points", fontsize=8, color=colour)
        x, y = ([point[k] for point in YOLOV5N[images]] for k in (0, 1))
        label = f"YOLOv5n, {images} images (measured elsewhere)"
        axes.plot(x, y, "x:", color=colour, alpha=0.7, label=label)
    axes.set(xscale="log", xlabel="CPU seconds, one thread", ylabel="mAP on 132 test images, %")
    ticks = [50, 100, 200, 500, 1000, 2000]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
