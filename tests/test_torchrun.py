"""A classifier's training that two processes share, as `torchrun` starts them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from runs import log_of, pretrain_quietly, torchrun, write_classifier_settings
from sppdet.classification.classifier import build_classifier
from sppdet.classification.config import PretrainConfig
from sppdet.io.settings import load_settings
from sppdet.runs.artifacts import fingerprint_of, read_tensors


@pytest.fixture(scope="module")
def settings_to_share(shape_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No BatchNorm and no dropout, which differ between processes."""
    return write_classifier_settings(
        tmp_path_factory.mktemp("pair") / "pair.yaml",
        shape_root,
        data={"root": str(shape_root), "train_per_class": 4, "val_per_class": 2},
        backbone={"name": "convnet5", "weights": "none"},
        head={"widths": [16], "dropout": 0.0},
        augment={"resize": 70, "crop": 64},
        train={"sizes": [64], "epochs": 2, "batch_size": 6, "lr": 0.02},
        test={"views": ["full"], "side": 70, "crop": 64},
        workers=1,
    )


def test_two_processes_train_as_one(settings_to_share: Path, tmp_path: Path) -> None:
    ended = torchrun(2, "pretrain", settings_to_share, "--run", tmp_path / "two", "--device", "cpu")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("kept epoch") == 1  # one of them speaks
    pretrain_quietly(settings_to_share, tmp_path / "one")
    paths = [tmp_path / name / "model" / "last.safetensors" for name in ("one", "two")]
    assert fingerprint_of(paths[0]) == fingerprint_of(paths[1])
    one, two = (read_tensors(path)[0] for path in paths)
    start = start_of(settings_to_share)
    assert one.keys() == two.keys() == start.keys()
    for name, tensor in one.items():
        moved = float((tensor - start[name]).abs().max())
        assert moved > 0, name
        assert float((tensor - two[name]).abs().max()) < 1e-2 * moved, name
    logs = [[r for r in log_of(tmp_path / n) if r["event"] == "epoch"] for n in ("one", "two")]
    for key in ("train_loss", "train_error", "val_loss", "val_error", "lr"):
        values = [[record[key] for record in log] for log in logs]
        np.testing.assert_allclose(values[0], values[1], rtol=1e-4)
    assert [len(log) for log in logs] == [2, 2]
    assert not (tmp_path / "two" / ".lock").exists()


def start_of(settings: Path) -> dict[str, torch.Tensor]:
    """The weights that training starts from."""
    config = load_settings(settings, PretrainConfig)
    return build_classifier(config, ["cross", "disc", "square"]).state_dict()


def test_an_error_in_several_processes_ends_them(settings_to_share: Path, tmp_path: Path) -> None:
    ended = torchrun(
        2, *("pretrain", settings_to_share, "--run", tmp_path, "--set", "train.batch=3")
    )
    assert ended.returncode != 0
    assert "error: " in ended.stderr and "train.batch: unknown" in ended.stderr
    assert not (tmp_path / "model").exists()
