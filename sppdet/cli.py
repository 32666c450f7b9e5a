"""The command line: sppdet train | eval | detect | ... | pretrain | classify | probe."""

from __future__ import annotations

import io
import logging
import math
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Annotated, Literal

import cv2
import typer

from sppdet.config import available_cores
from sppdet.config_file import load_config, load_settings
from sppdet.environment import set_threads
from sppdet.errors import ConfigError, SppdetError, one_line, printable
from sppdet.places import claim_folder
from sppdet.run import Reporter
from sppdet.signals import Stopped, raise_if_requested, stopping_signals
from sppdet.version import __version__

app = typer.Typer(
    help="SPP-net object detection: train, evaluate, detect.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Device = Literal["auto", "cpu", "cuda"]
DeviceOption = Annotated[Device, typer.Option(help="Where the networks run.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting.")
]
RunOption = Annotated[
    Path | None, typer.Option(help="Folder of the run; default: runs/NAME-OF-CONFIG.")
]
ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML settings.")]
StageName = Literal["data", "proposals", "features", "finetune", "svm", "bbox", "evaluate"]
MetricName = Literal["voc07", "voc10", "coco"]
ViewName = Literal["centre", "10", "full", "maps10", "maps96", "maps98"]
ClassifierArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of a classifier's run.")
]
ViewsOption = Annotated[
    list[str] | None,
    typer.Option(help="centre, 10, full, maps10, maps96 or maps98; may be given again."),
]
_MOST_THREADS, _MOST_PIXELS, _MOST_CLASSES = 1024, 10_000, 1_000_000  # what can be meant
_INTERRUPTED = 130  # typer's status after Ctrl-C
# what a signal that ends a command leaves, and how to go on
_AFTER_A_SIGNAL = {
    "train": "training goes on from here by the same command",
    "propose": "the proposals so far are kept; the same command does the rest",
    "eval": "the detections so far are kept; the same command does the rest",
    "eval --detections": "nothing is kept; the same command starts again",
    "detect": "the results so far are kept; the same command does the rest",
    "pretrain": "training goes on from here by the same command",
    "pretrain-eval": "nothing is kept; the same command starts again",
    "classify": "the answers so far are kept, in the file of --json too",
    "probe": "nothing is kept; the same command starts again",
    "download": "sets that are whole are kept; the same command fetches the rest",
    "demo": "the demo goes on from here by the same command",
}


class _State:
    """State of the command that is running."""

    debug = False
    command = ""


def main() -> None:
    """Entry point: errors meant for the user are one line on stderr and status 1.

    SIGINT, SIGTERM and SIGHUP end in a line that says how to go on, and status 128 + signal.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="replace"
            )  # a terminal that can't show × still shows the rest
    _State.debug, _State.command = False, ""
    threads = set(threading.enumerate())
    with stopping_signals(say_stopped):
        try:
            _call()
        except Stopped as stop:
            if _State.debug:
                traceback.print_exc()
            say_stopped(stop)
            if any(not thread.daemon for thread in set(threading.enumerate()) - threads):
                os._exit(stop.status)  # Python would wait for what they are at
            raise SystemExit(stop.status) from None


def _call() -> None:
    try:
        try:
            app()
        except SystemExit:
            if sys.stdout is not None:  # which is closed where it is None
                sys.stdout.flush()  # a full disk shows now at the latest
            raise
    except BrokenPipeError:
        _drop_output()  # whoever read it has gone
        raise SystemExit(1) from None
    except (SppdetError, OSError, MemoryError) as error:
        raise_if_requested()
        _drop_output()
        if _State.debug:
            traceback.print_exc()
        text = "not enough memory" if isinstance(error, MemoryError) else error
        print(one_line(f"error: {text}"), file=sys.stderr)
        raise SystemExit(1) from None
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # by typer, where Python itself has handled Ctrl-C
            raise Stopped(signal.SIGINT) from None
        raise


def _drop_output() -> None:
    """Send what can't be written to standard output nowhere: Python would fail again at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say_stopped(stop: Stopped) -> None:
    """The last line of a command that was told to stop; of several processes the first says it."""
    how = _AFTER_A_SIGNAL.get(_State.command)
    try:
        if os.environ.get("RANK", "0") == "0":
            print(f"{stop}; {how}" if how else stop, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # the terminal has gone; Python would fail once more on closing the streams
        os._exit(stop.status)


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"sppdet {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=_MOST_THREADS,
            help="Threads for the networks; default: all cores, or this process's share.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    _State.debug, _State.command = debug, context.invoked_subcommand or ""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("warning: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    cv2.utils.logging.setLogLevel(
        cv2.utils.logging.LOG_LEVEL_SILENT
    )  # broken pictures are reported by us
    set_threads(threads or available_cores())


@app.command()
def train(
    config: ConfigArgument,
    run: RunOption = None,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
    until: Annotated[StageName, typer.Option(help="Stop after this stage.")] = "evaluate",
) -> None:
    """Train a detector; an interrupted run goes on where it stopped."""
    from sppdet.pipeline import train as run_stages

    settings = load_config(config, overrides or ())
    run_stages(settings, run or Path("runs") / config.stem, device=device, until=until)


@app.command("eval")
def evaluate(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="Folder of a run.")] = None,
    split: Annotated[str, typer.Option(help="test, train or the name of a set.")] = "test",
    metric: Annotated[MetricName | None, typer.Option(help="Default: the settings'.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="With --detections: settings with a data section.")
    ] = None,
    detections: Annotated[
        Path | None,
        typer.Option(
            help="comp4 files' folder, COCO results or a detections.json, made by anyone."
        ),
    ] = None,
    ids: Annotated[
        str | None,
        typer.Option(
            metavar="stem|position|FILE.json",
            help="With --detections: what numbers of images mean. stem: the file's name; position: in"
            " the set, from 1; or the COCO annotations that they are of. Default: what is certain.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --detections: where reports go.")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Score a run on a split, or anyone's detections."""
    from sppdet.evaluation.from_files import evaluate_files
    from sppdet.evaluation.stage import evaluate_run

    if run is not None and not (config or detections or out or ids):
        evaluate_run(run, split, metric=metric, device=device)
        return
    if run is not None or not (config and detections and out):
        raise ConfigError("eval: expected RUN, or --config, --detections and --out together")
    _State.command = "eval --detections"
    evaluate_files(config, detections, out, split=split, metric=metric, ids=ids)
    print(printable(f"reports are in {out}"))


@app.command()
def detect(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH", help="Pictures, or folders of them.")
    ],
    out: Annotated[Path, typer.Option(help="Where results go.")],
    score: Annotated[float, typer.Option(help="Least score (an SVM margin).")] = 0.0,
    save: Annotated[str, typer.Option(help="Some of images,json,csv,voc,coco.")] = "images,json",
    workers: Annotated[
        int | None, typer.Option(min=1, max=_MOST_THREADS, help="Default: one per core.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Detect in pictures and folders of pictures."""
    from sppdet.detection.detector import Detector
    from sppdet.detection.folder import detect_folder
    from sppdet.detection.planning import parse_formats

    formats = parse_formats(save)
    if not math.isfinite(score):
        raise ConfigError(f"--score {score}: expected a number")
    reporter = Reporter()
    detector = Detector.load(run, device=device)
    if score < detector.config.min_score:
        reporter.say(f"--score {score}: the run's detect.min_score is {detector.config.min_score}")
    result = detect_folder(
        detector,
        paths,
        out,
        min_score=score,
        formats=formats,
        workers=workers or available_cores(),
        reporter=reporter,
    )
    reporter.say(f"{result.detections} detections in {result.pictures} pictures; see {out}")
    if result.failed:
        raise SppdetError(
            f"{len(result.failed)} of {result.images} images failed; the first: {result.failed[0]}"
        )


@app.command()
def propose(
    config: ConfigArgument,
    out: Annotated[Path | None, typer.Option(help="Write one .npz a picture here as well.")] = None,
    run: RunOption = None,
    overrides: SetOption = None,
) -> None:
    """Make the proposals of the training and test set and measure them."""
    from sppdet.distributed import process_count
    from sppdet.pipeline import train as run_stages
    from sppdet.proposals.export import export_proposals

    if process_count() > 1:
        raise ConfigError("propose: runs in one process; expected `train --until proposals`")
    settings = load_config(config, overrides or ())
    folder = run or Path("runs") / config.stem
    if out is not None:
        claim_folder(out, command="propose")
    reporter = Reporter(folder)
    run_stages(settings, folder, device="cpu", until="proposals", reporter=reporter)
    if out is not None:
        export_proposals(settings, folder, out)
        reporter.say(f"boxes (xyxy, 0-based, half-open) are in {out}")


@app.command()
def pretrain(
    config: ConfigArgument,
    run: RunOption = None,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train a classifier, which can be a detector's backbone; torchrun starts several processes."""
    from sppdet.classification.config import PretrainConfig
    from sppdet.classification.stage import pretrain as run_training

    settings = load_settings(config, PretrainConfig, overrides or ())
    run_training(settings, run or Path("runs") / config.stem, device=device)


@app.command("pretrain-eval")
def pretrain_eval(
    run: ClassifierArgument,
    views: ViewsOption = None,
    side: Annotated[
        int | None, typer.Option(min=1, max=_MOST_PIXELS, help="Shorter side of the picture.")
    ] = None,
    crop: Annotated[
        int | None, typer.Option(min=1, max=_MOST_PIXELS, help="Side of a view.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, max=_MOST_PIXELS, help="Side that a crop is resized to.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Top-1 and top-5 of a classifier on its validation set; the settings' views by default."""
    from sppdet.classification.testing import evaluate_classifier

    given = {"views": views, "side": side, "crop": crop, "size": size}
    overrides = {key: value for key, value in given.items() if value}
    evaluate_classifier(run, overrides=overrides, device=device)
    print(printable(f"written to {run / 'eval' / 'classifier.json'}"))


@app.command()
def classify(
    run: ClassifierArgument,
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH", help="Pictures, or folders of them.")
    ],
    views: Annotated[ViewName, typer.Option(help="How each picture is seen.")] = "full",
    top: Annotated[
        int, typer.Option(min=1, max=_MOST_CLASSES, help="How many classes to name.")
    ] = 5,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the answers here too.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Name the most probable classes of pictures."""
    from sppdet.artifacts import write_json
    from sppdet.classification.testing import check_answers_file, classify_pictures
    from sppdet.data.names import escape_name

    if json_file is not None:
        check_answers_file(json_file)
    answers, failed = [], []
    try:
        for path, found in classify_pictures(run, paths, views=views, top=top, device=device):
            if isinstance(found, str):
                failed.append(found)
                continue
            best = ", ".join(f"{name} {score:.3f}" for name, score in found)
            print(printable(f"{path}: {best}"))
            classes = [{"class": name, "score": score} for name, score in found]
            answers.append({"file": escape_name(str(path)), "classes": classes})
    finally:  # also the answers before an error or a signal; none leave an earlier file alone
        if json_file is not None and (answers or failed):
            write_json(json_file, answers)
    if failed:
        total = len(answers) + len(failed)
        raise SppdetError(f"{len(failed)} of {total} pictures skipped; the first: {failed[0]}")


@app.command()
def probe(
    config: ConfigArgument,
    out: Annotated[
        Path | None, typer.Option(help="Folder of probe.json; default: runs/NAME-OF-CONFIG.")
    ] = None,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Linear SVMs on a network's features of whole pictures: how good are the features?"""
    from sppdet.classification.config import ProbeConfig
    from sppdet.classification.probe import probe as run_probe

    settings = load_settings(config, ProbeConfig, overrides or ())
    folder = out or Path("runs") / config.stem
    run_probe(settings, folder, device=device)
    print(printable(f"written to {folder / 'probe.json'}"))


@app.command()
def download(
    name: Annotated[Literal["voc2007", "voc2012"], typer.Argument(help="Which set.")],
    root: Annotated[Path, typer.Option(help="Folder that receives VOCdevkit.")] = Path("data"),
) -> None:
    """Fetch PASCAL VOC."""
    from sppdet.data.download import download_voc

    year: Literal["2007", "2012"] = "2007" if name == "voc2007" else "2012"
    for folder in download_voc(year, root):
        print(printable(str(folder)))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demo.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of pictures and training.")] = 0,
) -> None:
    """Make a set of pictures, train on it, evaluate, detect in fresh ones."""
    from sppdet.demo import run_demo

    run_demo(out, seed=seed)


@app.command()
def info(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
) -> None:
    """Say what a run consists of and what it scored."""
    from sppdet.info import describe_run

    for line in describe_run(run):
        print(printable(line))


if __name__ == "__main__":
    main()
