"""How far probabilities and thresholds hold on the test set, and how often intervals hold the truth.

    python benchmarks/calibration.py RUN [RUN ...] [--least 0.1]
    python benchmarks/calibration.py RUN --coverage 100 [--sets 200] [--metric voc10]

RUN is a trained run with probabilities, evaluated on its test set; nothing is fitted here. The first
form prints the expected calibration error of detections (D-ECE, 10 bins) of those with a probability
of `--least` or more, by the calibration and, for comparison, by the sigmoid of the score alone, and
precision and recall on the test set at the thresholds that had a precision of 0.5 and 0.9 on training
images. The second form draws small test sets of so many images from the large one, with
replacement, and counts how many of their 95 % intervals of mAP contain the mAP of the large one.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import get_args

import before_torch  # noqa: F401
import numpy as np
from numpy.typing import NDArray

from sppdet.evaluation.bootstrap import with_intervals
from sppdet.evaluation.calibration import Calibration, Evidence
from sppdet.evaluation.curves import VocMetric
from sppdet.evaluation.reliability import calibration_error, reliability_bins
from sppdet.evaluation.voc import class_results, evaluate_voc
from sppdet.randomness import rng
from sppdet.stages.compare import read_scored
from sppdet.stages.evaluate import Scored
from sppdet.stages.model import read_calibration
from sppdet.stages.model_files import ModelFiles, read_run_config

WANTED = (0.5, 0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--least", type=float, default=0.1)
    parser.add_argument("--coverage", type=int, metavar="IMAGES")
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--metric", choices=get_args(VocMetric), default="voc07")
    args = parser.parse_args()
    if args.coverage:
        coverage(read_scored(args.runs[0], "test"), args.coverage, args.sets, args.metric)
        return
    titles = [f"at wanted precision {w}: precision, detections, recall" for w in WANTED]
    print("| run | detections | D-ECE | without calibration | " + " | ".join(titles) + " |")
    print("|---" * (4 + len(WANTED)) + "|")
    for run in args.runs:
        print(row(run, least=args.least), flush=True)


def row(run: Path, *, least: float) -> str:
    """Compare a run's probabilities with its outcomes on the test set."""
    scored = read_scored(run, "test")
    files = ModelFiles(run)
    made_for = files.detection_fingerprint(read_run_config(run))
    classes = len(scored.dataset.class_names)
    calibration = read_calibration(files.find("calibration"), classes=classes, made_for=made_for)
    if calibration is None:
        return f"| {run.name} | no probabilities |"
    results = class_results(scored.dataset, scored.detections, metric="voc07")
    evidence = [Evidence.of(one) for one in results]
    scores = np.concatenate([e.scores for e in evidence]).astype(np.float32)
    labels = np.repeat(np.arange(1, classes + 1), [len(e.scores) for e in evidence])
    right = np.concatenate([e.correct for e in evidence])
    objects = sum(e.objects for e in evidence)
    p = calibration.probabilities(scores, labels)
    plain = (1 / (1 + np.exp(-scores.astype(np.float64)))).astype(np.float32)
    cells = [run.name, str(int((p >= least).sum()))]
    cells += [f"{error_from(values, right, least):.3f}" for values in (p, plain)]
    cells += [at_precision(calibration, wanted, p, right, objects) for wanted in WANTED]
    return "| " + " | ".join(cells) + " |"


def error_from(p: NDArray[np.float32], right: NDArray[np.bool_], least: float) -> float:
    """D-ECE of the detections with a probability of `least` or more."""
    seen = p >= least
    return calibration_error(reliability_bins(p[seen], right[seen]))


def at_precision(
    calibration: Calibration,
    wanted: float,
    p: NDArray[np.float32],
    right: NDArray[np.bool_],
    objects: int,
) -> str:
    """Precision and recall at the threshold with a wanted precision on training images."""
    threshold = calibration.at_precision(wanted)
    if threshold is None:
        return "never reached"
    chosen = p >= threshold
    count, hits = int(chosen.sum()), int(right[chosen].sum())
    precision = hits / count if count else float("nan")
    return f"{precision:.3f}, {count}, {hits / objects:.2f}"


def coverage(scored: Scored, size: int, sets: int, metric: VocMetric) -> None:
    """Count the small test sets whose interval contains the mAP of the large one."""
    dataset, found = scored.dataset, scored.detections
    truth = evaluate_voc(dataset, found, metric=metric).mean_ap
    inside, widths = 0, []
    for number in range(sets):
        drawn = rng(number, "small test set").integers(len(dataset), size=size)
        images = [dataset.images[i] for i in drawn]  # one that is drawn twice is two images
        named = {f"{place}": image for place, image in enumerate(images)}
        small = tuple(replace(image, id=name) for name, image in named.items())
        own = {name: found[image.id] for name, image in named.items() if image.id in found}
        result = evaluate_voc(replace(dataset, images=small), own, metric=metric)
        intervals = with_intervals(result).intervals
        assert intervals is not None
        low, high = intervals.mean
        inside += low <= truth <= high
        widths.append(high - low)
    print(
        f"{scored.run}: {metric} mAP {100 * truth:.1f} on {len(dataset)} images; of {sets} sets of {size}, "
        f"{inside / sets:.1%} of the 95 % intervals contain it; mean width {100 * np.mean(widths):.1f}"
    )


if __name__ == "__main__":
    main()
