"""Commands of classifiers: pretrain, pretrain-eval, classify, probe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sppdet.cli.options import (
    ClassifierArgument,
    ConfigArgument,
    DeviceOption,
    PathsArgument,
    RunOption,
    SetOption,
    default_run,
)
from sppdet.cli.process import show, start_libraries, suggest
from sppdet.errors import SppdetError

ViewName = Literal["centre", "10", "full", "maps10", "maps96", "maps98"]
_MAX_PIXELS, _MAX_CLASSES = 10_000, 1_000_000


def pretrain(
    config: ConfigArgument,
    run: RunOption = None,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train a classifier, which can be a detector's backbone; torchrun starts several processes."""
    from sppdet.classification.config import PretrainConfig
    from sppdet.io.settings import load_settings

    settings = load_settings(config, PretrainConfig, overrides or ())
    start_libraries()
    from sppdet.classification.stage import pretrain as run_training

    folder = run or default_run(config)
    run_training(settings, folder, device=device)
    suggest("classify", str(folder), "FOLDER")


def pretrain_eval(
    run: ClassifierArgument,
    views: Annotated[
        list[str] | None,
        typer.Option(
            help="centre, 10, full, maps10, maps96 or maps98; may be repeated. Default: the"
            " settings' views."
        ),
    ] = None,
    side: Annotated[
        int | None, typer.Option(min=1, max=_MAX_PIXELS, help="Shorter side of the image.")
    ] = None,
    crop: Annotated[
        int | None, typer.Option(min=1, max=_MAX_PIXELS, help="Side of a view.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(min=1, max=_MAX_PIXELS, help="Side to which crops are resized."),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure a classifier's top-1 and top-5 accuracy on its validation set."""
    start_libraries()
    from sppdet.classification.testing import evaluate_classifier

    given = {"views": views, "side": side, "crop": crop, "size": size}
    overrides = {key: value for key, value in given.items() if value}
    evaluate_classifier(run, overrides=overrides, device=device)
    show(f"written to {run / 'eval' / 'classifier.json'}")


def classify(
    run: ClassifierArgument,
    paths: PathsArgument,
    views: Annotated[
        ViewName, typer.Option(help="Views of each image whose scores are averaged.")
    ] = "full",
    top: Annotated[
        int, typer.Option(min=1, max=_MAX_CLASSES, help="Number of classes to name.")
    ] = 5,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the answers here, too.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Name the most probable classes of images."""
    start_libraries()
    from sppdet.classification.testing import check_answers_file, classify_images
    from sppdet.io.names import escape_name
    from sppdet.runs.artifacts import write_json

    if json_file is not None:
        check_answers_file(json_file)
    answers, failed = [], []
    try:
        for path, found in classify_images(run, paths, views=views, top=top, device=device):
            if isinstance(found, str):
                failed.append(found)
                continue
            best = ", ".join(f"{name} {score:.3f}" for name, score in found)
            show(f"{path}: {best}")
            classes = [{"class": name, "score": score} for name, score in found]
            answers.append({"file": escape_name(str(path)), "classes": classes})
    finally:  # also the answers before an error or a signal; none leave an earlier file alone
        if json_file is not None and (answers or failed):
            write_json(json_file, answers)
    if failed:
        total = len(answers) + len(failed)
        raise SppdetError(f"{len(failed)} of {total} images skipped; the first: {failed[0]}")


def probe(
    config: ConfigArgument,
    out: Annotated[
        Path | None, typer.Option(help="Folder of probe.json; default: runs/NAME-OF-CONFIG.")
    ] = None,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure a network's features by linear SVMs on whole images."""
    from sppdet.classification.config import ProbeConfig
    from sppdet.io.settings import load_settings

    settings = load_settings(config, ProbeConfig, overrides or ())
    start_libraries()
    from sppdet.classification.probe import probe as run_probe

    folder = out or default_run(config)
    run_probe(settings, folder, device=device)
    show(f"written to {folder / 'probe.json'}")
