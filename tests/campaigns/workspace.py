"""The sets, settings and runs that campaigns work on: small, generated, made once."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml

from images import shape_sets
from runs import (
    pretrain_quietly,
    train_quietly,
    write_classifier_settings,
    write_settings,
)
from sppdet.demo.set import make_demo_set
from sppdet.evaluation.coco import to_coco
from sppdet.io.dataset import load_dataset

# less than the tests' settings: a whole training in about two seconds
QUICK = {
    "proposals": {"image_width": 120, "max_boxes": 40, "min_size": 12},
    "scales": [96],
    "features": {"canonical_size": 64},
    "head": {"widths": [8]},
    "finetune": {"batches": 6, "lr": 5e-3, "snapshots": 2},
    "workers": 1,
}
QUICK_CLASSIFIER = {
    "train": {"sizes": [32], "epochs": 2, "batch_size": 6, "schedule": "step"},
    "workers": 1,
}


@dataclass(frozen=True)
class Workspace:
    """Folders and files below `root`; a case may change them, `Snapshot` puts them right again."""

    root: Path

    @property
    def voc(self) -> Path:
        """A set in the layout of VOC: trainval (6 images), test (3), fresh/ (2)."""
        return self.root / "set"

    @property
    def coco(self) -> Path:
        """The same annotations as COCO's: annotations/instances_test.json and -_trainval."""
        return self.root / "coco"

    @property
    def settings(self) -> Path:
        """Settings of a detector on `voc`."""
        return self.root / "small.yaml"

    @property
    def run(self) -> Path:
        """The run trained by `settings`."""
        return self.root / "run"

    @property
    def folders(self) -> Path:
        """Images in folders named by class: train, val."""
        return self.root / "shapes"

    @property
    def classifier_settings(self) -> Path:
        """Settings of a classifier on `folders`."""
        return self.root / "shapes.yaml"

    @property
    def classifier(self) -> Path:
        """The run trained by `classifier_settings`."""
        return self.root / "classifier"


def make_workspace(root: Path) -> Workspace:
    """Make the sets and train on them, in one thread."""
    space = Workspace(root)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    make_demo_set(space.voc, seed=3, train_images=6, test_images=3, fresh_images=2)
    write_settings(space.settings, Path("set"), **QUICK)
    train_quietly(space.settings, space.run)
    shape_sets(space.folders, train=4, val=2)
    write_classifier_settings(space.classifier_settings, Path("shapes"), **QUICK_CLASSIFIER)
    pretrain_quietly(space.classifier_settings, space.classifier)
    for name in ("trainval", "test"):
        dataset = load_dataset(
            format="voc", roots=[space.voc], sets=[name], images=None, class_names=None,
            on_error="stop", read_images=True, known=None,
        )  # fmt: skip
        path = space.coco / "annotations" / f"instances_{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(to_coco(dataset)))
    data = {
        "format": "coco", "root": "coco", "images": "set/JPEGImages",
        "train": "trainval", "test": "test",
    }  # fmt: skip
    text = yaml.safe_dump({"base": "small.yaml", "data": data})
    (root / "coco.yaml").write_text(text)
    probe = {
        "data": {"root": "shapes/train", "train_per_class": 2, "test_per_class": 1},
        "backbone": {"name": "tiny", "weights": "none"}, "spp_levels": [1], "side": 32,
        "splits": [0], "workers": 1,
    }  # fmt: skip
    (root / "probe.yaml").write_text(yaml.safe_dump(probe))
    return space


def add_oddities(space: Workspace) -> None:
    """Paths that a command may be given by mistake: `odd/` has one of each kind."""
    odd = space.root / "odd"
    (odd / "folder").mkdir(parents=True)
    (odd / "folder.jpg").mkdir()
    for name in (
        "empty",
        "empty.jpg",
        "empty.json",
        "empty.yaml",
        "empty.mat",
        "empty.safetensors",
    ):
        (odd / name).touch()
    junk = np.random.default_rng(0).bytes(300)
    for name in ("junk", "junk.jpg", "junk.json", "junk.yaml", "junk.npz", "junk.safetensors"):
        (odd / name).write_bytes(junk)
    (odd / "list.json").write_text("[]")
    (odd / "map.json").write_text("{}")
    (odd / "a.jpg").write_bytes(
        next(iter(sorted((space.voc / "JPEGImages").iterdir()))).read_bytes()
    )
    os.mkfifo(odd / "fifo.jpg")
    (odd / "loop").symlink_to("loop")
    (odd / "dangling.jpg").symlink_to("nowhere.jpg")
    for name in (
        "line\nbreak.jpg",
        "\x1b[31m.jpg",
        "\udcff.jpg",
        "=1+1.jpg",
        "-rf.jpg",
        "a" * 240 + ".jpg",
    ):
        shutil.copy(odd / "a.jpg", odd / name)
    if os.geteuid() == 0:  # of our own: a command that replaced /dev/null would harm the machine
        for name, minor in (("null", 3), ("zero", 5), ("full", 7)):
            os.mknod(odd / f"{name}.jpg", stat.S_IFCHR | 0o666, os.makedev(1, minor))


State = tuple[int, int, int]  # mode, and of a file its bytes and time of change


class Snapshot:
    """What a folder held; afterwards it tells what changed, and puts it right from a copy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.copy = folder.with_name(folder.name + "-kept")
        shutil.rmtree(self.copy, ignore_errors=True)
        _copy(folder, self.copy)
        self.before = states(folder)

    def changes(self) -> tuple[set[str], set[str]]:
        """Relative paths that are (new, changed or gone)."""
        now = states(self.folder)
        new = now.keys() - self.before.keys()
        changed = {path for path, state in self.before.items() if now.get(path) != state}
        return set(new), changed

    def restore(self) -> None:
        """Make the folder what it was."""
        new, changed = self.changes()
        if not new and not changed:
            return
        for path in sorted(new | changed, reverse=True):
            _remove(self.folder / path)
        for path in sorted(changed):
            source, target = self.copy / path, self.folder / path
            if source.is_dir() and not source.is_symlink():
                target.mkdir(exist_ok=True)
            else:
                _copy_one(source, target)
        self.before = states(self.folder)


def states(folder: Path) -> Mapping[str, State]:
    """The state of every file and folder below a folder, by relative path."""
    found: dict[str, State] = {}
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(parent, name)
            state = path.lstat()
            is_file = stat.S_ISREG(state.st_mode)
            found[str(path.relative_to(folder))] = (
                state.st_mode,
                state.st_size if is_file else 0,
                state.st_mtime_ns if is_file else 0,
            )
    return found


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_dir() and not path.is_symlink():
            place.mkdir(exist_ok=True)
        else:
            _copy_one(path, place)


def _copy_one(source: Path, target: Path) -> None:
    mode = source.lstat().st_mode
    if stat.S_ISLNK(mode):
        target.symlink_to(source.readlink())
    elif stat.S_ISREG(mode):
        shutil.copy2(source, target)
    elif stat.S_ISFIFO(mode):
        os.mkfifo(target)
    else:
        os.mknod(target, mode, source.lstat().st_rdev)
