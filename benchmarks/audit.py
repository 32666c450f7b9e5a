"""Plant errors into the annotations of a training set, and count those that `sppdet audit` finds.

    python benchmarks/audit.py --out DIR [--data SET] [--weights FILE] [--images N] [--seed S]
                               [--drop 0.05] [--shift 0.05] [--swap 0.05] [--double 0.02] [--top 50]
                               [--threads 1] [--set KEY=VALUE ...]

SET is a folder in the VOC layout with the set trainval; data/frk5 and the weights of EfficientNet-Lite0
below $SPPDET_DATA are taken without it. Errors are planted into a copy of its annotations, each into a
fraction of the objects that aren't difficult, and no object has two: labels are dropped; boxes are
shifted by 30 to 50 % of their size in a random direction and clipped, to an IoU of at most 0.6 with the
true box; classes are swapped for another one at random; and objects get a second box, each side moved
by up to 5 % of the size. `--images N` takes a random subset. A run of lite0_small (`--set` changes its
settings) is trained on this set and audited. Of the first rows (`--top`) of each kind, and of all kinds
together, the Markdown table has the number that show a planted error of that kind (precision) and their
fraction of all that were planted (recall); the last column counts the right corrections among them: the
true class, a box nearer to the true one. An error that SET itself has counts as a wrong row. A trained
run in DIR costs nothing again.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import before_torch  # noqa: F401
import numpy as np

from sppdet import load_config, train
from sppdet.boxes import box_iou, clip_boxes
from sppdet.evaluation.audit import Kind, Suspicion
from sppdet.io.dataset import load_dataset
from sppdet.io.image_cache import ImageCache
from sppdet.io.voc_writing import voc_annotation
from sppdet.randomness import rng
from sppdet.runs.artifacts import write_text
from sppdet.runs.environment import set_threads
from sppdet.stages.audit import Audit, audit_run
from sppdet.types import AnnotatedImage, Boxes, Dataset

CONFIG = Path(__file__).parent.parent / "configs" / "lite0_small.yaml"
ERRORS: dict[str, Kind] = {
    "drop": "unlabelled",
    "shift": "loose box",
    "swap": "swapped class",
    "double": "double box",
}
SHIFT = (0.3, 0.5)  # of the box's width and height
MAX_IOU = 0.6  # of a shifted box, clipped, with the true one
MOVE = 0.05  # of each side of a second box, by its width or height
SAME = 0.85  # IoU of boxes that differ by rounding to whole pixels


@dataclass(frozen=True)
class Planted:
    """One planted error: the true box (1, 4) and class of an object, and the annotated ones."""

    kind: Kind
    image: str
    box: Boxes
    label: int
    annotated: Boxes | None  # None where the label is dropped
    annotated_label: int


def main() -> None:
    below = Path(os.environ["SPPDET_DATA"]) if "SPPDET_DATA" in os.environ else None
    weights = below and below / "weights" / "tf_efficientnet_lite0.safetensors"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=below and below / "data" / "frk5")
    parser.add_argument("--weights", type=Path, default=weights)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int)
    parser.add_argument("--seed", type=int, default=0)
    for name in ERRORS:
        parser.add_argument(f"--{name}", type=float, default=0.02 if name == "double" else 0.05)
    parser.add_argument("--top", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    args = parser.parse_args()
    if args.data is None or args.weights is None:
        print("skipped: name --data and --weights, or set SPPDET_DATA", file=sys.stderr)
        return
    set_threads(args.threads)
    true = read_images(args.data, args.images, args.seed)
    spoiled, planted = plant(true, {name: getattr(args, name) for name in ERRORS}, args.seed)
    write_set(spoiled, args.out / "set")
    overrides = [
        f"data.root={args.out / 'set'}",
        f"data.images={args.data / 'JPEGImages'}",
        "data.train=planted",
        "data.test=null",
        f"backbone.weights={args.weights}",
        *args.overrides,
    ]
    train(load_config(CONFIG, overrides), args.out / "run", device="cpu")
    found = audit_run(args.out / "run", top=args.top)
    print(table(found, planted, top=args.top))


def table(found: Audit, planted: Sequence[Planted], *, top: int) -> str:
    """Format precision and recall of the first rows as Markdown."""
    shown = [(one, shows(one, found.dataset, planted)) for one in found.suspicions]
    lines = [
        f"| kind | planted | rows | right of the first {top} | precision | recall | corrected rightly |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in (*ERRORS.values(), None):
        rows = [(one, error) for one, error in shown if kind in (None, one.kind)]
        total = sum(kind in (None, error.kind) for error in planted)
        first = rows[:top]
        right = [(one, error) for one, error in first if error is not None]
        # a planted error may be shown by several rows
        recall = len({id(error) for _, error in right}) / max(total, 1)
        corrected = sum(corrects(one, error) for one, error in right)
        lines.append(
            f"| {kind or 'all'} | {total} | {len(rows)} | {len(right)} of {len(first)} "
            f"| {len(right) / max(len(first), 1):.2f} | {recall:.2f} | {corrected} |"
        )
    return "\n".join(lines)


def shows(one: Suspicion, dataset: Dataset, planted: Sequence[Planted]) -> Planted | None:
    """Find the planted error that a suspicion shows."""
    image = next(image for image in dataset.images if image.id == one.image)
    for error in planted:
        if (error.image, error.kind) != (one.image, one.kind):
            continue
        if error.annotated is None:
            if one.label == error.label and box_iou(one.box[None], error.box)[0, 0] >= 0.5:
                return error
            continue
        rows = [row for row in (one.row, one.kept) if row is not None]
        same = box_iou(image.gt_boxes[rows], error.annotated)[:, 0] >= SAME
        if (same & (image.gt_labels[rows] == error.annotated_label)).any():
            return error
    return None


def corrects(one: Suspicion, error: Planted) -> bool:
    """Check whether the suggestion of a suspicion is what the object was before."""
    if error.annotated is None or one.kind == "swapped class":
        return one.label == error.label
    iou = box_iou(np.concatenate([one.box[None], error.annotated]), error.box)[:, 0]
    return bool(iou[0] > iou[1])


def plant(
    dataset: Dataset, fractions: Mapping[str, float], seed: int
) -> tuple[Dataset, list[Planted]]:
    """Plant errors into a data set that was read with its images."""
    random = rng(seed, "planted errors")
    owners = [
        (i, row)
        for i, image in enumerate(dataset.images)
        for row in np.flatnonzero(~image.difficult).tolist()
    ]
    order = iter(random.permutation(len(owners)).tolist())
    images = list(dataset.images)
    planted: list[Planted] = []
    dropped: list[tuple[int, int]] = []  # at the end, since rows change
    for name, fraction in fractions.items():
        for _ in range(round(fraction * len(owners))):
            i, row = owners[next(order)]
            image = images[i]
            true, label = image.gt_boxes[[row]], int(image.gt_labels[row])
            box: Boxes | None = true
            annotated_label = label
            if name == "drop":
                dropped.append((i, row))
                box = None
            elif name == "shift":
                boxes = image.gt_boxes.copy()
                box = shifted(image, true, random)
                boxes[row] = box
                images[i] = replace(image, gt_boxes=boxes)
            elif name == "swap":
                labels = image.gt_labels.copy()
                others = [k for k in range(1, len(dataset.class_names) + 1) if k != label]
                labels[row] = annotated_label = int(random.choice(others))
                images[i] = replace(image, gt_labels=labels)
            else:
                box = doubled(image, true, random)
                images[i] = with_object(image, box, label)
            planted.append(Planted(ERRORS[name], image.id, true, label, box, annotated_label))
    for i in {i for i, _ in dropped}:
        images[i] = without(images[i], [row for k, row in dropped if k == i])
    return replace(dataset, images=tuple(images)), planted


def doubled(image: AnnotatedImage, box: Boxes, random: np.random.Generator) -> Boxes:
    """Move each side of a box (1, 4) by a small part of its size."""
    size = np.tile(box[0, 2:] - box[0, :2], 2)
    moved = np.rint(box + random.uniform(-MOVE, MOVE, 4) * size).astype(np.float32)
    return clip_boxes(moved, width=image.width, height=image.height)


def shifted(image: AnnotatedImage, box: Boxes, random: np.random.Generator) -> Boxes:
    """Shift a box (1, 4) by a part of its size, till clipping leaves it away from where it was."""
    size = box[0, 2:] - box[0, :2]
    for _ in range(100):
        angle, reach = random.uniform(0, 2 * np.pi), random.uniform(*SHIFT)
        move = np.tile(reach * np.array([np.cos(angle), np.sin(angle)]) * size, 2)
        found = clip_boxes(
            np.rint(box + move).astype(np.float32), width=image.width, height=image.height
        )
        if box_iou(found, box)[0, 0] <= MAX_IOU:
            break
    return found


def with_object(image: AnnotatedImage, box: Boxes, label: int) -> AnnotatedImage:
    """Append an object."""
    return replace(
        image,
        gt_boxes=np.concatenate([image.gt_boxes, box]),
        gt_labels=np.append(image.gt_labels, label),
        difficult=np.append(image.difficult, False),
        truncated=np.append(image.truncated, False),
    )


def without(image: AnnotatedImage, rows: Sequence[int]) -> AnnotatedImage:
    """Leave out objects."""
    names = ("gt_boxes", "gt_labels", "difficult", "truncated")
    return replace(image, **{name: np.delete(getattr(image, name), rows, axis=0) for name in names})


def read_images(root: Path, count: int | None, seed: int) -> Dataset:
    """Read a set with its images, or a random subset of it."""
    dataset = load_dataset(
        format="voc",
        roots=[root],
        sets=["trainval"],
        images=None,
        class_names=None,
        on_error="stop",
        read_images=True,
        known=ImageCache(),
    )
    if count is None:
        return dataset
    chosen = np.sort(rng(seed, "images of the audit").permutation(len(dataset))[:count]).tolist()
    return replace(dataset, images=tuple(dataset.images[i] for i in chosen))


def write_set(dataset: Dataset, root: Path) -> None:
    """Write the annotations of a set as `planted`, without its images."""
    for image in dataset.images:
        write_text(
            root / "Annotations" / f"{image.id}.xml",
            voc_annotation(
                filename=image.path.name,
                width=image.width,
                height=image.height,
                boxes=image.gt_boxes,
                names=[dataset.class_names[label - 1] for label in image.gt_labels],
                difficult=image.difficult,
                truncated=image.truncated,
            ),
        )
    names = "".join(f"{image.id}\n" for image in dataset.images)
    write_text(root / "ImageSets" / "Main" / "planted.txt", names)


if __name__ == "__main__":
    main()
