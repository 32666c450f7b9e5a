"""The names that the package offers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sppdet
from sppdet import errors, types, version
from sppdet.cli import app as cli
from sppdet.io import settings as config_file
from sppdet.stages import detector, pipeline


def test_public_names() -> None:
    assert sorted(sppdet.__all__) == [
        *("Detections", "Detector", "SppdetError", "__version__", "load_config", "train")
    ]
    assert set(sppdet.__all__) <= set(dir(sppdet))


def test_names_are_what_they_stand_for() -> None:
    from sppdet import Detections, Detector, SppdetError, __version__, load_config, train

    assert Detections is types.Detections
    assert Detector is detector.Detector
    assert SppdetError is errors.SppdetError
    assert load_config is config_file.load_config
    assert train is pipeline.train
    assert __version__ == version.__version__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        getattr(sppdet, "nonsense")  # noqa: B009


def test_every_error_of_ours_is_an_sppdet_error() -> None:
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    assert len(found) == 8
    assert all(issubclass(error, sppdet.SppdetError) for error in found)


def test_the_module_is_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sppdet", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"sppdet {version.__version__}\n")
    assert cli.main.__module__ == "sppdet.cli.app"


def test_the_detector_as_the_package_shows_it(trained: Path, demo_root: Path) -> None:
    loaded = sppdet.Detector.load(str(trained), device="cpu")
    path = demo_root / "fresh" / "000019.jpg"
    detections = loaded(str(path))
    assert isinstance(detections, sppdet.Detections)
    assert len(detections) and detections.path == str(path)
