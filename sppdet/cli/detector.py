"""Commands of the detector: train, eval, diagnose, report, explain, detect, propose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sppdet.cli.options import (
    MAX_THREADS,
    ConfigOrImagesArgument,
    DeviceOption,
    InputsArgument,
    ModelArgument,
    RunArgument,
    RunOption,
    SetOption,
    default_run,
)
from sppdet.cli.process import given_words, show, start_libraries, state, suggest
from sppdet.cli.thresholds import (
    PrecisionOption,
    ProbabilityOption,
    RecallOption,
    ScoreOption,
    of_missed,
    threshold,
)
from sppdet.errors import ConfigError, SppdetError

if TYPE_CHECKING:
    from collections.abc import Mapping

StageName = Literal[
    "data", "proposals", "features", "finetune", "ranking", "svm", "bbox", "calibrate", "evaluate"
]
MetricName = Literal["voc07", "voc10", "coco"]


def train(
    config: ConfigOrImagesArgument,
    run: RunOption = None,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
    until: Annotated[StageName, typer.Option(help="Stop after this stage.")] = "evaluate",
    preset: Annotated[
        Literal["fast", "balanced", "accurate"] | None,
        typer.Option(help="Settings for a folder of images. Default: fast; on a GPU, accurate."),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.1, max=1e6, help="Choose what the training of a folder of images has time for."
        ),
    ] = None,
) -> None:
    """Train a detector; an interrupted run goes on where it stopped."""
    from sppdet.stages.choice import settings_and_choice

    settings, choice = settings_and_choice(config, overrides or [], preset=preset, minutes=minutes)
    start_libraries()
    from sppdet.stages.pipeline import train as run_stages

    folder = run or default_run(config)
    run_stages(settings, folder, device=device, until=until, choice=choice)
    if until == "evaluate":
        suggest("detect", str(folder), "FOLDER", "--out", "found")
    else:
        suggest(*given_words("train", without=("--until",)))


def _wrong_call(runs: int, of_detections: Mapping[str, bool], ids: bool) -> str:
    """Say what a call of `eval` lacks or has too much of.

    Args:
        runs: number of RUNs. of_detections: what detections made elsewhere need, and what of it is given.
    """
    needed = "--config, --detections and --out"
    given = [name for name, there in of_detections.items() if there]
    if runs and (ids or set(given) - {"--out"}):
        return f"expected RUN, or {needed} (and --ids) without one"
    if runs > 1:
        return "expected --out, a folder for the reports of several RUNs"
    if runs:
        return "--out is for several RUNs or --detections; the reports of one are in RUN/eval"
    if given:
        missing = " and ".join(name for name, there in of_detections.items() if not there)
        return f"{missing} missing; expected {needed} together"
    return f"expected RUN, or several RUNs and --out, or {needed} together"


def evaluate(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN",
            help="Folder of a run; the models of several are combined, with the settings of the first. "
            "Those after the first may be files of `sppdet export`.",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="test, train or the name of a set.")] = "test",
    metric: Annotated[
        MetricName | None, typer.Option(help="Default: the one in the settings.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="With --detections: settings with a data section.")
    ] = None,
    detections: Annotated[
        Path | None,
        typer.Option(
            help="Detections by any detector: folder of comp4 files, COCO results or a"
            " detections.json."
        ),
    ] = None,
    ids: Annotated[
        str | None,
        typer.Option(
            metavar="stem|position|FILE.json",
            help="With --detections: meaning of image numbers. stem: the file's name; position: in"
            " the set, from 1; or the COCO annotations that they come from. Default: what is certain.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="With --detections or several RUNs: folder for the reports."),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Score a run on a split, several runs as one detector, or detections made by any detector."""
    runs = runs or []
    if len(runs) == 1 and not (config or detections or out or ids):
        start_libraries()
        from sppdet.stages.evaluate import evaluate_run

        evaluate_run(runs[0], split, metric=metric, device=device)
        suggest("diagnose", str(runs[0]), *(["--split", split] if split != "test" else []))
        return
    if len(runs) > 1 and out and not (config or detections or ids):
        start_libraries()
        from sppdet.stages.evaluate_runs import evaluate_runs

        evaluate_runs(runs, out, split, metric=metric, device=device)
        return
    if runs or not (config and detections and out):
        given = {"--config": bool(config), "--detections": bool(detections), "--out": bool(out)}
        raise ConfigError(f"eval: {_wrong_call(len(runs), given, bool(ids))}")
    start_libraries()
    from sppdet.stages.evaluate_files import evaluate_files

    state.command = "eval --detections"
    evaluate_files(config, detections, out, split=split, metric=metric, ids=ids)
    show(f"reports are in {out}")


def diagnose(
    run: RunArgument,
    split: Annotated[str, typer.Option(help="test, train or the name of a set.")] = "test",
    score: ScoreOption = "auto",
    min_probability: ProbabilityOption = None,
    precision: PrecisionOption = None,
    recall: RecallOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Find the cause of every missed object and every false detection of a run on a split."""
    start_libraries()
    from sppdet.stages.causes import diagnose_run

    wanted = threshold(score, min_probability, precision, recall)
    diagnose_run(run, split, wanted=wanted, device=device)


def report(
    run: RunArgument,
    split: Annotated[str, typer.Option(help="test, train or the name of a set.")] = "test",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Default: report.html in the run, or report_SPLIT.html."),
    ] = None,
) -> None:
    """Write an evaluated run's report: one HTML file with scores, curves, errors, images and settings."""
    start_libraries()
    from sppdet.stages.run_report import write_report

    show(f"written to {write_report(run, split, out=out)}")


def explain(
    run: ModelArgument,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.")],
    at: Annotated[
        str | None,
        typer.Option(metavar="X,Y", help="A point in pixels: why is nothing there, or what is?"),
    ] = None,
    detection: Annotated[
        int | None, typer.Option(help="Number of a detection, from 1 for the best.")
    ] = None,
    score: ScoreOption = "auto",
    min_probability: ProbabilityOption = None,
    precision: PrecisionOption = None,
    recall: RecallOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Default, with a run: its explain/NAME.html.",
        ),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Walk one image through all stages, as an HTML page: a detection, or a point where there is none."""
    if at is not None and detection is not None:
        raise ConfigError("explain: expected one of --at and --detection")
    start_libraries()
    from sppdet.stages.explain import explain as write_page
    from sppdet.stages.explain import parse_point

    point = None if at is None else parse_point(at)
    wanted = threshold(score, min_probability, precision, recall)
    page = write_page(
        run, image, at=point, detection=detection, wanted=wanted, out=out, device=device
    )
    show(f"written to {page}")


def detect(
    run: ModelArgument,
    inputs: InputsArgument,
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    score: ScoreOption = "auto",
    min_probability: ProbabilityOption = None,
    precision: PrecisionOption = None,
    recall: RecallOption = None,
    save: Annotated[
        str,
        typer.Option(help="Formats to write: some of images,json,jsonl,csv,voc,coco,yolo,crops."),
    ] = "images,json",
    workers: Annotated[
        int | None, typer.Option(min=1, max=MAX_THREADS, help="Default: one per core.")
    ] = None,
    device: DeviceOption = "auto",
    tile: Annotated[
        int | None,
        typer.Option(
            min=32, metavar="PX", help="Search large images by tiles of so many pixels, too."
        ),
    ] = None,
    overlap: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Fraction of a tile that neighbours share.")
    ] = 0.2,
    max_pixels: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Largest image; default: the run's data.max_pixels."),
    ] = None,
    every: Annotated[
        int, typer.Option(min=1, metavar="N", help="Of videos and cameras take every Nth frame.")
    ] = 1,
    frames: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Frames of each video or camera at most.")
    ] = None,
) -> None:
    """Detect in images: files, folders, patterns, lists, URLs, videos, cameras, standard input."""
    start_libraries()
    from sppdet.folders.folder import detect_folder
    from sppdet.folders.formats import parse_formats
    from sppdet.folders.inputs import plan_images
    from sppdet.runs.environment import available_cores
    from sppdet.runs.log import LOGGER, RESULT, event
    from sppdet.stages.detector import Detector
    from sppdet.stages.thresholds import least_scores

    formats = parse_formats(save)
    wanted = threshold(score, min_probability, precision, recall)
    detector = Detector.load(run, device=device)
    if tile is not None:
        detector = detector.tiled(tile, overlap=overlap)
    if max_pixels is not None:
        detector = replace(detector, max_pixels=max_pixels)
    least, text = least_scores(detector, wanted)
    minimum = detector.min_score
    if wanted.kind == "score" and wanted.value < minimum:
        LOGGER.info("--score %s: the run's detect.min_score is %s", score, minimum)
    result = detect_folder(
        detector,
        plan_images(inputs, every=every, most=frames),
        out,
        min_score=least,
        formats=formats,
        workers=workers or available_cores(),
    )
    counts = f"{result.detections} detections in {result.detected} images, {text}"
    if not result.detections and result.missed:
        counts += of_missed(result.missed)
    numbers = {"detections": result.detections, "images": result.detected}
    facts = event("detected", **numbers, failed=len(result.failed))
    LOGGER.log(RESULT, "%s; see %s", counts, out, extra=facts)
    if result.failed:
        raise SppdetError(
            f"{len(result.failed)} of {result.images} images failed; the first: {result.failed[0]}"
        )


def propose(
    config: ConfigOrImagesArgument,
    out: Annotated[
        Path | None, typer.Option(help="Folder for one .npz file per image, too.")
    ] = None,
    run: RunOption = None,
    overrides: SetOption = None,
) -> None:
    """Compute the proposals of the training and test set and measure their recall."""
    from sppdet.io.settings import load_config

    settings = load_config(config, overrides or ())
    start_libraries()
    from sppdet.runs.distributed import process_count
    from sppdet.runs.log import LOGGER, RESULT
    from sppdet.runs.places import claim_folder
    from sppdet.stages.export_proposals import export_proposals
    from sppdet.stages.pipeline import train as run_stages

    if process_count() > 1:
        raise ConfigError("propose: runs in one process; expected `train --until proposals`")
    folder = run or default_run(config)
    if out is not None:
        claim_folder(out, command="propose")
    run_stages(settings, folder, device="cpu", until="proposals")
    if out is not None:
        export_proposals(settings, folder, out)
        LOGGER.log(RESULT, "boxes (xyxy, 0-based, half-open) are in %s", out)
    suggest(*given_words("train", without=("--out",)))
