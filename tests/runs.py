"""Small runs, of a detector and of a classifier: settings, training, and their files as bytes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from sppdet.classification.config import PretrainConfig
from sppdet.classification.stage import pretrain
from sppdet.config import Config
from sppdet.demo.set import make_demo_set
from sppdet.io.settings import load_config, load_settings
from sppdet.runs.log import ConsoleHandler, handler_added
from sppdet.stages.context import Stage
from sppdet.stages.pipeline import train
from sppdet.types import EvalResult

CommandLine = Callable[..., tuple[int, str, str]]
CLASSES = ("disc", "square", "star", "triangle")
SMALL: dict[str, Any] = {
    "backbone": {"name": "tiny", "weights": "none"},
    "proposals": {"image_width": 200, "max_boxes": 150, "min_size": 12},
    "scales": [120, 200],
    "features": {"canonical_size": 80},
    "head": {"widths": [32]},
    "finetune": {"batches": 30, "lr": 5e-3, "snapshots": 3},
    "svm": {"retrain_after": 200},  # so that mining retrains more than once
}

# of settings, for trainings that come in numbers
FAST = ["head=none", "finetune=none", "scales=[120]", "svm.layer=pool5"]

SMALL_CLASSIFIER: dict[str, Any] = {
    "backbone": {"name": "tiny", "weights": "none"},
    "spp_levels": [2, 1],
    "head": {"widths": [16], "dropout": 0.25},
    "augment": {"resize": 36, "crop": 32},
    "train": {"sizes": [32, 24], "epochs": 6, "batch_size": 10, "schedule": "step"},
    "test": {"views": ["centre", "full"], "side": 36, "crop": 32},
    "workers": 2,
}

# The command line, but the process is killed at the nth file that matches: when it is written
# whole under its temporary name, or once it has its own.
KILLED = """
import contextlib, os, signal, sys
import sppdet.runs.artifacts
pattern, nth, moment = sys.argv[1], int(sys.argv[2]), sys.argv[3]
genuine, seen = sppdet.runs.artifacts.atomic_path, 0

@contextlib.contextmanager
def atomic_path(path):
    global seen
    matches = path.match(pattern)
    with genuine(path) as temporary:
        yield temporary
        seen += matches
        if moment == "before" and matches and seen == nth:
            os.kill(os.getpid(), signal.SIGKILL)
    if moment == "after" and matches and seen == nth:
        os.kill(os.getpid(), signal.SIGKILL)

for module in list(sys.modules.values()):
    if getattr(module, "atomic_path", None) is genuine:
        module.atomic_path = atomic_path
sys.argv[1:] = sys.argv[4:]
from sppdet.cli.main import main
main()
"""


# Command lines in forks of one process, which imports everything once.
FORKS = """
import json, sys
from contextlib import AbstractContextManager
from pathlib import Path
from campaigns.fork import start, warm_up
from runs import KILLED
warm_up()
for line in sys.stdin:
    folder, *arguments = json.loads(line)
    def work():
        sys.argv[1:] = arguments
        exec(KILLED, {})
    ended = start(work, Path(folder)).ended(300)
    print(json.dumps([ended.status, ended.out, ended.err]), flush=True)
"""


class Forks:
    """Run command lines with one thread, each in a fork, killed as by `KILLED`; needs Linux."""

    def __init__(self, folder: Path) -> None:
        """Start the process that forks; `folder` is for the output of its children."""
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        self._folder = folder
        self._parent = subprocess.Popen(
            [sys.executable, "-c", FORKS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_: object) -> None:
        self._parent.communicate(timeout=60)

    def run(
        self, arguments: Sequence[str | Path], kill: tuple[str, int, str] = ("nothing", 0, "after")
    ) -> tuple[int, str, str]:
        """The exit status (negative for a signal), stdout and stderr of a command.

        Args:
            kill: pattern of a file, at which of those that match, before or after its renaming.
        """
        assert self._parent.stdin is not None and self._parent.stdout is not None
        print(
            json.dumps([str(part) for part in (self._folder, *kill, *arguments)]),
            file=self._parent.stdin,
            flush=True,
        )
        status, out, err = json.loads(self._parent.stdout.readline())
        return status, out, err


def small_set(folder: Path) -> Path:
    """Twelve images to train on, six to test, three without annotations."""
    return make_demo_set(folder, seed=3, train_images=12, test_images=6, fresh_images=3)


def write_settings(path: Path, root: Path, **more: Any) -> Path:
    """A file of small settings for the set in `root`; `more` takes the place of its sections."""
    data = {"root": str(root), "train": "trainval", "test": "test"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"data": data, **SMALL, **more}), encoding="utf-8")
    return path


def train_quietly(
    settings: Path | Config, run: Path, *overrides: str, until: Stage = "evaluate"
) -> tuple[EvalResult | None, str]:
    """Train in the folder `run`; returns the evaluation and what was said."""
    said = io.StringIO()
    config = settings if isinstance(settings, Config) else load_config(settings, overrides)
    with printed_to(said):
        result = train(config, run, device="cpu", until=until)
    return result, said.getvalue()


def printed_to(file: io.StringIO, *, width: int = 200) -> AbstractContextManager[None]:
    """Print the messages of a block into a file as the command line prints them."""
    return handler_added(ConsoleHandler(Console(file=file, width=width, soft_wrap=True)))


def torchrun(
    processes: int, *arguments: str | Path, program: Sequence[str | Path] = ("-m", "sppdet", "--")
) -> subprocess.CompletedProcess[str]:
    """The command line in several processes of a thread each."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += [*map(str, program), "--threads", "1", *map(str, arguments)]
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def write_classifier_settings(path: Path, root: Path, **more: Any) -> Path:
    """A file of small settings of a classifier; `more` takes the place of its sections."""
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"data": {"root": str(root)}, **SMALL_CLASSIFIER, **more}
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def pretrain_quietly(settings: Path, run: Path, *overrides: str) -> str:
    """Train a classifier in the folder `run`; returns what was said."""
    said = io.StringIO()
    config = load_settings(settings, PretrainConfig, overrides)
    with printed_to(said):
        pretrain(config, run, device="cpu")
    return said.getvalue()


def contents(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    """Every file of a folder by its name."""
    return {p.name: p.read_bytes() for p in folder.glob(pattern) if p.is_file()}


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file at any depth by its path, hidden ones and the targets of links too."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def results(run: Path) -> dict[str, bytes]:
    """What must not depend on how a run came about: the model, scores and detections."""
    scored = run / "eval" / "test"
    found = (
        contents(run / "model")
        | contents(run / "folds", "d*")
        | contents(scored / "voc07", "metrics.json")
    )
    return found | contents(scored, "comp4*") | contents(scored, "coco_results.json")


def log_of(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, each of them JSON in the strict sense."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    text = (run / "log.jsonl").read_text(encoding="utf-8")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
