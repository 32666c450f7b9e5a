"""What the tests share: a thread or two for each library, and what is made once for all."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import stages
from images import shape_sets
from kinds import KINDS, Pair, train_kind
from runs import (
    FAST,
    CommandLine,
    pretrain_quietly,
    small_set,
    train_quietly,
    write_classifier_settings,
    write_settings,
)
from sppdet.cli.main import main
from sppdet.config import Config
from sppdet.features.backbones import Backbone
from sppdet.io.backbone_weights import load_backbone
from sppdet.io.settings import load_config
from sppdet.stages.detector import Detector
from sppdet.stages.trained_model import TrainedModel, write_model
from sppdet.types import Detections

# a shell that starts the tests in the background has some of them ignored, and so would subprocesses
for name in ("SIGINT", "SIGTERM", "SIGHUP"):
    number = getattr(signal, name, None)  # Windows has no SIGHUP
    if number is not None and signal.getsignal(number) is signal.SIG_IGN:
        usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
        signal.signal(number, usual)
torch.set_num_threads(1)  # more only wait for each other over maps as small as the tests'
cv2.setNumThreads(1)
os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "-8"  # as `set_variables` has it, before the first video


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first: at the end one process would wait for them while others are idle."""
    long = ("test_torchrun", "test_resume", "test_campaigns", "test_pretrain_resume")
    items.sort(key=lambda item: not item.path.name.startswith(long))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def no_log_of_an_earlier_world() -> Iterator[None]:
    yield
    stages.LOGS.close()


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads for torch, where work is shared out among threads."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> Backbone:
    return load_backbone("tiny", "none")


@pytest.fixture(scope="session")
def demo_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set of images in the layout of VOC; not to be changed."""
    return small_set(tmp_path_factory.mktemp("demo") / "set")


@pytest.fixture(scope="session")
def settings(demo_root: Path) -> Path:
    """The settings of `trained`; not to be changed."""
    return write_settings(demo_root.parent / "small.yaml", demo_root, workers=1)


@pytest.fixture(scope="session")
def trained(settings: Path) -> Path:
    """The folder of a whole run; not to be changed."""
    run = settings.parent / "run"
    train_quietly(settings, run)
    return run


@pytest.fixture(scope="session")
def detector(trained: Path) -> Detector:
    """The detector of `trained`."""
    return Detector.load(trained, device="cpu")


@pytest.fixture
def images(demo_root: Path, tmp_path: Path) -> Path:
    """A folder of three images; some files of tests have one of their own."""
    return Path(shutil.copytree(demo_root / "fresh", tmp_path / "in"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One number for each image that a detector works on."""
    genuine, made = Detector.detect_prepared, list[int]()

    def counted(self: Detector, *arguments: Any, **named: Any) -> Detections:
        made.append(1)
        return genuine(self, *arguments, **named)

    monkeypatch.setattr(Detector, "detect_prepared", counted)
    return made


@pytest.fixture(scope="session")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model file of `trained`; not to be changed."""
    path = tmp_path_factory.mktemp("exported") / "model.sppdet"
    write_model(TrainedModel.open(trained), path)
    return path


@pytest.fixture(scope="session", params=["trained", *KINDS])
def pair(
    request: pytest.FixtureRequest,
    trained: Path,
    exported: Path,
    demo_root: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Pair:
    """A run of each kind, and its model file; not to be changed."""
    if request.param == "trained":
        return Pair(trained, exported)
    if request.param == "timm":
        pytest.importorskip("timm")
    return train_kind(request.param, tmp_path_factory.mktemp("kind"), demo_root)


@pytest.fixture
def run_copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained` to work on."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="session")
def shape_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders named by class: `train` with 20 images each, `val` with 6; not to be changed."""
    return shape_sets(tmp_path_factory.mktemp("shapes"), train=20, val=6)


@pytest.fixture(scope="session")
def classifier_settings(shape_root: Path) -> Path:
    """The settings of `classified`; not to be changed."""
    return write_classifier_settings(shape_root / "shapes.yaml", shape_root)


@pytest.fixture(scope="session")
def classified(classifier_settings: Path) -> Path:
    """The run of a trained classifier; not to be changed."""
    run = classifier_settings.parent / "run"
    pretrain_quietly(classifier_settings, run)
    return run


@pytest.fixture(scope="module")
def without_curves() -> Iterator[None]:
    """Drawing precision-recall curves takes most of the time of small trainings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sppdet.stages.evaluate.write_curves", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def config(settings: Path) -> Config:
    """Settings of trainings that come in numbers."""
    return load_config(settings, FAST)


@pytest.fixture(autouse=True)
def _no_handlers_left() -> Iterator[None]:
    """A command that runs in this process adds handlers for its console; they end with the test."""
    loggers = [logging.getLogger(), logging.getLogger("sppdet")]
    states = [(logger.handlers[:], logger.level) for logger in loggers]
    yield
    for logger, (handlers, level) in zip(loggers, states, strict=True):
        logger.handlers[:] = handlers
        logger.setLevel(level)


@pytest.fixture
def sppdet(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line in this process: its arguments to (exit status, stdout, stderr)."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        words = [str(argument) for argument in arguments]
        if words[:1] != ["--version"]:
            words = ["--threads", "1", *words]
        monkeypatch.setattr(sys, "argv", ["sppdet", *words])
        capfd.readouterr()
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 0
        said = capfd.readouterr()
        return status, said.out, said.err

    return call
