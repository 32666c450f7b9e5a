"""A whole run: its files, what is done again and what isn't, and on what it doesn't depend."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runs import CLASSES, contents, log_of, results, train_quietly, write_settings
from sppdet.cli.info import describe_run
from sppdet.config import Config
from sppdet.errors import ArtifactError, ConfigError
from sppdet.features.backbones import ScaledImage
from sppdet.io.images import read_image
from sppdet.io.settings import load_config
from sppdet.runs.artifacts import fingerprint_of, read_tensors
from sppdet.runs.distributed import Ranks
from sppdet.runs.lock import run_lock
from sppdet.runs.log import LOGGER, event, log_file
from sppdet.runs.processes import place
from sppdet.stages.context import STAGES, Stage
from sppdet.stages.detector import Detector
from sppdet.stages.map_cache import MapCache
from sppdet.stages.map_files import RoundedMap
from sppdet.stages.map_memory import MapMemory
from sppdet.stages.model_files import read_run_config
from sppdet.stages.pipeline import train
from sppdet.types import FeatureMaps

PARTS = {"head", "svm", "bbox", "calibration"}


def times(folder: Path) -> dict[str, int]:
    files = sorted(p for p in folder.rglob("*.safetensors"))
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in files}


def test_a_run_leaves_its_files(trained: Path) -> None:
    found = {p.relative_to(trained).as_posix() for p in trained.rglob("*") if p.is_file()}
    model = {f"model/{part}.safetensors" for part in (*PARTS, "backbone")}
    curves = {"metrics.json", "pr_curves.png", "pr_disc.png", "pr_disc.csv"}
    reports = {"coco_results.json", *(f"voc07/{name}" for name in curves)}
    reports |= {f"comp4_det_test_{name}.txt" for name in CLASSES}
    model.add("model/trained.json")
    wanted = model | {f"eval/test/{name}" for name in reports}
    wanted |= {"config.yaml", "log.jsonl", "images.json", "timings.json", "report.html"}
    assert wanted <= found
    kinds = [p.split("/")[1].split("-")[0] for p in found if p.startswith("store/")]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "proposals": 18,
        "maps": 24,  # of the training images, mirrored ones too
        "detections": 6,
    }
    assert not any(p.startswith(("state/", ".lock")) or p.endswith(".tmp") for p in found)
    umask = os.umask(0)
    os.umask(umask)
    assert {(trained / p).stat().st_mode & 0o777 for p in found} == {0o666 & ~umask}


def test_metrics(trained: Path) -> None:
    metrics = json.loads((trained / "eval" / "test" / "voc07" / "metrics.json").read_text())
    assert metrics["metric"] == "voc07" and metrics["split"] == "set-test"
    assert list(metrics["AP"]) == list(CLASSES)
    assert metrics["mAP"] == pytest.approx(np.mean(list(metrics["AP"].values())))
    assert metrics["images"] == 6
    truths = metrics["ground_truths"]
    # ring is of no class of the training images, difficult objects don't count
    assert 0 < truths <= 15
    lines = [f.read_text().splitlines() for f in (trained / "eval" / "test").glob("comp4*")]
    assert metrics["detections"] == sum(map(len, lines)) > 0
    assert "scales:120+200|spp:6+3+2+1|svm:fc6|ft:yes|bb:yes" in metrics["signature"]


def test_log_and_timings(trained: Path) -> None:
    log = log_of(trained)
    ended = [record["stage"] for record in log if record["event"] == "stage ended"]
    assert ended[: len(STAGES)] == list(STAGES)
    assert log[0]["event"] == "run started" and log[0]["config"]["seed"] == 0
    (sealed,) = [record for record in log if record["event"] == "trained"]
    assert sealed["svm"] == fingerprint_of(trained / "model" / "svm.safetensors")
    timings = json.loads((trained / "timings.json").read_text())
    assert list(timings) == list(STAGES)
    idle = {"ranking"}  # without its setting
    assert all(seconds > 0 or stage in idle for stage, seconds in timings.items())
    used = {r["stage"]: r["cpu_seconds"] for r in log if r["event"] == "stage ended"}
    assert list(used) == list(STAGES) and used["svm"] > 0


def test_a_log_has_no_nan(tmp_path: Path) -> None:
    with log_file(tmp_path, Ranks()):
        LOGGER.debug("a", extra=event("evaluated", mean_ap=float("nan"), count=3))
        LOGGER.warning("b %d", 1)
    LOGGER.warning("c")  # outside
    one, two = log_of(tmp_path)
    assert (one["event"], one["text"], one["mean_ap"], one["count"]) == ("evaluated", "a", None, 3)
    assert (two["event"], two["text"]) == ("warning", "b 1")


def test_a_second_call_does_nothing_again(settings: Path, trained: Path) -> None:
    before, bytes_before = times(trained), results(trained)
    result, said = train_quietly(settings, trained)
    assert result is not None and result.mean_ap >= 0
    for part in PARTS:
        assert f"{part}: there already\n" in said
    assert times(trained) == before
    assert results(trained) == bytes_before


def test_only_a_random_head_is_fitted_to_the_windows(
    settings: Path, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[int] = []
    monkeypatch.setattr(
        "sppdet.stages.finetune.standardise", lambda _, pooled: fitted.append(len(pooled))
    )
    train_quietly(settings, run_copy, "finetune.batches=5", until="finetune")
    assert len(fitted) == 1 and fitted[0] > 100
    monkeypatch.setattr("sppdet.stages.finetune.pretrained_fc", lambda *_: "some")
    train_quietly(settings, run_copy, "finetune.batches=6", until="finetune")
    assert len(fitted) == 1


@pytest.mark.parametrize(
    ("setting", "redone", "new_stores"),
    [
        ("svm.C=0.01", {"svm", "calibration"}, set()),
        ("bbox.ridge=10", {"bbox", "calibration"}, set()),
        ("svm.target_norm=10", {"svm", "bbox", "calibration"}, set()),
        ("svm.layer=pool5", {"svm", "calibration"}, set()),
        ("finetune.lr=1e-3", {"head", "svm", "calibration"}, set()),
        ("spp_levels=[3,1]", PARTS, set()),
        ("scales=[120]", PARTS, {"maps"}),
        ("proposals.max_boxes=100", PARTS, {"proposals"}),
        ("detect.nms=0.5", {"calibration"}, set()),
        ("calibrate={folds: 2}", {"svm", "bbox", "calibration"}, set()),
        ("checkpoint_minutes=0", set(), set()),
    ],
)
def test_a_changed_setting_redoes_what_it_concerns(
    settings: Path, run_copy: Path, setting: str, redone: set[str], new_stores: set[str]
) -> None:
    before, stores = times(run_copy), set((run_copy / "store").iterdir())
    _, said = train_quietly(settings, run_copy, setting, until="calibrate")
    for part in PARTS:
        made_again = rf"{part}: (made by other settings or data|there already, but .*); made again"
        again = re.search(made_again, said) is not None
        skipped = f"{part}: there already\n" in said
        assert (again, skipped) == (part in redone, part not in redone)
    after = times(run_copy)
    changed = {path for path in before if after[path] != before[path]}
    of_folds = {"svm", "bbox"} & redone | ({"detections"} if "calibration" in redone else set())
    expected = {f"model/{part}.safetensors" for part in redone}
    assert changed == expected | {f"folds/{part}.safetensors" for part in of_folds}
    added = set((run_copy / "store").iterdir()) - stores
    assert {path.name.split("-")[0] for path in added} == new_stores


def test_settings_of_detection_detect_again(settings: Path, run_copy: Path) -> None:
    before = results(run_copy)
    train_quietly(settings, run_copy, "detect.nms=0.6")
    after = results(run_copy)
    same = {name for name in before if before[name] == after[name]}
    scoring = {"backbone", "head", "svm", "bbox"}  # the calibration is of other detections
    assert same == {*(f"{part}.safetensors" for part in scoring), "trained.json"}


@pytest.mark.parametrize(
    ("setting", "room", "stored"),
    [
        ("false", 0, range(1)),
        ("false", 2**40, range(1)),
        ("overflow", 2**40, range(1)),
        ("overflow", 600_000, range(1, 24)),
        ("overflow", 0, range(24, 25)),
        ("true", 2**40, range(24, 25)),
    ],
)
def test_where_maps_are_changes_nothing(
    settings: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    room: int,
    stored: range,
) -> None:
    monkeypatch.setattr(
        "sppdet.stages.features.MapMemory.by_what_is_free",
        lambda device: MapMemory(device, room=room),
    )
    store = tmp_path / "store"  # with proposals alone
    store.mkdir()
    (proposals,) = (trained / "store").glob("proposals-*")
    shutil.copytree(proposals, store / proposals.name)
    train_quietly(settings, tmp_path / "run", f"store={store}", f"features.store={setting}")
    assert len(list(store.glob("maps-*/*.safetensors"))) in stored
    assert results(tmp_path / "run") == results(trained)


def test_a_bound_on_the_disk_changes_nothing(settings: Path, tmp_path: Path) -> None:
    """Neither with maps in eight bits, whether stored, computed or both, nor where the bound changes."""
    eight = ("features.rounding=int8", f"store={tmp_path / 'store'}")
    runs = [tmp_path / name for name in ("none", "bound")]
    train_quietly(settings, runs[0], *eight, "features.store=false")
    wanted = results(runs[0])

    def maps() -> list[int]:
        return [p.stat().st_size for p in (tmp_path / "store").glob("maps-*/*")]

    assert not maps()
    counts: list[int] = []
    stops: list[tuple[float | str, Stage]]
    stops = [(1e-4, "svm"), (2e-4, "evaluate"), (5e-5, "evaluate"), ("none", "evaluate")]
    for most, until in stops:
        for part in ("svm", "bbox") if counts else ():
            (runs[1] / "model" / f"{part}.safetensors").unlink(missing_ok=True)
        bound = f"features.max_disk={most}"
        _, said = train_quietly(settings, runs[1], *eight, bound, until=until)
        counts.append(len(maps()))
        assert said.count("others are recomputed") == (most != "none")
        assert most in ("none", 5e-5) or sum(maps()) <= float(most) * 1e9
        assert until == "svm" or results(runs[1]) == wanted
    assert 0 < counts[0] < counts[1] == counts[2] < counts[3]


def test_maps_are_computed_only_for_what_is_due(
    settings: Path, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = 0
    genuine = MapCache._computed

    def compute(self: MapCache, image: ScaledImage) -> tuple[FeatureMaps, list[RoundedMap]]:
        nonlocal computed
        computed += 1
        return genuine(self, image)

    monkeypatch.setattr(MapCache, "_computed", compute)
    monkeypatch.setattr(
        "sppdet.stages.features.MapMemory.by_what_is_free",
        lambda device: MapMemory(device, room=2**40),
    )
    (stored,) = (run_copy / "store").glob("maps-*")
    shutil.rmtree(stored)
    for overrides, due in (
        ((), 0),
        (("detect.nms=0.4",), 12 + 6),  # for the calibration, and the test images
        (("svm.C=0.002",), 12 + 6),  # no mirrored ones, which only fine-tuning wants
        (("svm.C=0.002", "finetune.batches=20"), 24 + 6),
    ):
        computed = 0
        train_quietly(settings, run_copy, "features.store=overflow", *overrides)
        assert computed == due, overrides
    assert not stored.exists()
    stops: list[tuple[Stage, str]] = [("finetune", "svm"), ("svm", "bbox")]
    for until, part in stops:
        computed = 0
        (run_copy / "model" / f"{part}.safetensors").unlink()
        train_quietly(settings, run_copy, "features.store=overflow", *overrides, until=until)
        assert computed == 12 * (until == "svm")  # the SVMs' alone
    computed = 0
    train_quietly(settings, run_copy, "features.store=overflow", *overrides, until="features")
    assert computed == len(list(stored.iterdir())) == 24


def test_neither_folder_nor_workers_change_anything(
    settings: Path, trained: Path, tmp_path: Path
) -> None:
    assert read_run_config(trained).workers == 1
    train_quietly(settings, tmp_path, "workers=3")
    assert results(tmp_path) == results(trained)
    (proposals,) = (trained / "store").glob("proposals-*")
    assert contents(tmp_path / "store" / proposals.name) == contents(proposals)


def test_another_seed_gives_another_model(settings: Path, run_copy: Path) -> None:
    before = contents(run_copy / "model")
    train_quietly(settings, run_copy, "seed=1", until="calibrate")
    after = contents(run_copy / "model")
    assert after.keys() == before.keys() and not (after.items() & before.items())


def test_without_a_head(settings: Path, run_copy: Path) -> None:
    result, _ = train_quietly(settings, run_copy, "head=none", "finetune=none")
    assert result is not None
    parts = ("backbone", "svm", "bbox", "calibration")
    found = {f"{part}.safetensors" for part in parts}
    assert set(contents(run_copy / "model")) == found | {"trained.json"}
    resolved = read_run_config(run_copy)
    assert resolved.head is None and resolved.finetune is None and resolved.svm.layer == "pool5"
    detector = Detector.load(run_copy, device="cpu")
    assert detector.classifiers.layer == "pool5"
    assert detector.classifiers.weights.shape == (4, (36 + 9 + 4 + 1) * detector.maps.channels)
    assert "svm:pool5|ft:no" in list(describe_run(run_copy))[1]


def test_without_box_regression(settings: Path, run_copy: Path, demo_root: Path) -> None:
    train_quietly(settings, run_copy, "bbox=none")
    parts = ("backbone", "head", "svm", "calibration")
    found = {f"{part}.safetensors" for part in parts}
    assert set(contents(run_copy / "model")) == found | {"trained.json"}
    assert read_run_config(run_copy).bbox is None
    image = read_image(demo_root / "JPEGImages" / "000013.jpg")
    detector = Detector.load(run_copy, device="cpu")
    proposed = {tuple(box) for box in detector.proposer.of(image).boxes.tolist()}
    boxes = {tuple(box) for box in detector(image).boxes.tolist()}
    assert boxes and boxes <= proposed


def test_a_random_backbone_needs_fine_tuning(settings: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"finetune: tiny .* expected finetune settings or head"):
        train_quietly(settings, tmp_path, "finetune=none")
    assert not (tmp_path / "store").exists()  # before any long stage


def test_until_stops_after_its_stage(settings: Path, trained: Path, tmp_path: Path) -> None:
    result, _ = train_quietly(settings, tmp_path, f"store={trained / 'store'}", until="features")
    assert result is None
    assert set(contents(tmp_path / "model")) == {"backbone.safetensors"}
    timings = json.loads((tmp_path / "timings.json").read_text())
    assert list(timings) == ["data", "proposals", "features"]


def test_settings_that_trained_nothing_leave_the_model_alone(
    settings: Path, run_copy: Path
) -> None:
    before = contents(run_copy / "model"), (run_copy / "config.yaml").read_bytes()
    train_quietly(settings, run_copy, "scales=[120]", until="proposals")
    assert (contents(run_copy / "model"), (run_copy / "config.yaml").read_bytes()) == before
    Detector.load(run_copy, device="cpu")


def test_a_half_retrained_model_is_refused(settings: Path, run_copy: Path) -> None:
    train_quietly(settings, run_copy, "svm.C=0.5", until="svm")
    with pytest.raises(ArtifactError, match="have changed since it was trained"):
        Detector.load(run_copy, device="cpu")
    train_quietly(settings, run_copy, "svm.C=0.5")
    Detector.load(run_copy, device="cpu")


@pytest.mark.parametrize(
    ("old", "new", "fits"),
    [("nms: 0.3", "nms: 0.4", True), ("C: 0.001", "C: 1.0", False)],
)
def test_a_runs_settings_edited_by_hand(run_copy: Path, old: str, new: str, fits: bool) -> None:
    path = run_copy / "config.yaml"
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")
    with nullcontext() if fits else pytest.raises(ArtifactError, match="have changed since"):
        Detector.load(run_copy, device="cpu")


def test_moved_images_are_the_same_and_changed_ones_are_not(
    demo_root: Path, run_copy: Path, tmp_path: Path
) -> None:
    root = tmp_path / "moved"
    shutil.copytree(demo_root, root)
    moved = write_settings(tmp_path / "moved.yaml", root)
    before = times(run_copy)
    train_quietly(moved, run_copy, until="calibrate")
    assert times(run_copy) == before

    path = root / "JPEGImages" / "000002.jpg"
    bgr = cv2.imread(str(path))
    assert bgr is not None
    cv2.imwrite(str(path), 255 - bgr)
    train_quietly(moved, run_copy, until="calibrate")
    after = times(run_copy)
    changed = {Path(p).name for p in before if after[p] != before[p]}
    assert changed == {f"{part}.safetensors" for part in PARTS | {"detections"}}
    added = {read_tensors(run_copy / p)[1]["id"] for p in after.keys() - before.keys()}
    assert added == {"000002", "000002.mirrored"}


# -- one process at a time ---------------------------------------------------------------------


def test_a_second_training_in_the_folder_is_refused(settings: Path, tmp_path: Path) -> None:
    with run_lock(tmp_path), pytest.raises(ArtifactError, match="another process is training"):
        train_quietly(settings, tmp_path, until="data")
    assert not (tmp_path / "config.yaml").exists()
    train_quietly(settings, tmp_path, until="data")
    assert (tmp_path / "config.yaml").exists() and not (tmp_path / ".lock").exists()


def test_another_process_holds_the_lock_until_it_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from sppdet.runs.lock import run_lock\n"
        "with run_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        message = "another process is training here"
        with pytest.raises(ArtifactError, match=message), run_lock(tmp_path):
            pass
        holder.kill()
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
        with run_lock(tmp_path):
            assert (tmp_path / ".lock").exists()
    finally:
        holder.kill()
        holder.communicate()
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize(
    "content", ["", f"{os.getpid()} 1"], ids=["empty", "of an earlier version"]
)
def test_a_stale_lock_is_taken_over(tmp_path: Path, content: str) -> None:
    (tmp_path / ".lock").write_text(content)
    with (
        run_lock(tmp_path),
        pytest.raises(ArtifactError, match="another process"),
        run_lock(tmp_path),
    ):
        raise AssertionError("two hold it")
    assert not (tmp_path / ".lock").exists()


def test_an_error_frees_the_folder(settings: Path, tmp_path: Path) -> None:
    broken = Config.model_validate(
        load_config(settings, ["data.train=nothing"]).model_dump(), strict=False
    )
    for _ in range(2):
        with pytest.raises(Exception, match="no such set"):
            train_quietly(broken, tmp_path)
        assert not (tmp_path / ".lock").exists()


def test_leftovers_of_a_killed_writer_are_removed(settings: Path, tmp_path: Path) -> None:
    folders = ("model", "state", "store/maps-1", "store/detections-2", "eval/test", ".")
    for number, name in enumerate(folders):
        (tmp_path / name).mkdir(exist_ok=True, parents=True)
        (tmp_path / name / f".tmp-{place()}-4194305-17-{number}").write_bytes(b"half")
    train_quietly(settings, tmp_path, until="data")
    assert not list(tmp_path.rglob(".*"))
    assert fingerprint_of(tmp_path / "model" / "svm.safetensors") is None


def test_events_go_to_a_function(settings: Path, run_copy: Path) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []
    config = load_config(settings, ["finetune.batches=20"])
    train(
        config, run_copy, device="cpu", on_event=lambda name, facts: seen.append((name, {**facts}))
    )
    names = [name for name, _ in seen]
    assert names.count("stage ended") == names.count("stage started") == len(STAGES)
    losses = [facts["train_loss"] for name, facts in seen if name == "finetune"]
    assert losses and all(np.isfinite(loss) for loss in losses)
    [found] = [facts for name, facts in seen if name == "evaluated"]
    metrics = json.loads((run_copy / "eval" / "test" / "voc07" / "metrics.json").read_text())
    assert found["mean_ap"] == pytest.approx(metrics["mAP"])


def test_a_tracker_that_fails_ends_no_training(
    settings: Path, run_copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    def fail(name: str, _: object) -> None:
        calls.append(name)
        raise ConnectionError("no way\nout")

    assert train(load_config(settings, []), run_copy, device="cpu", on_event=fail) is not None
    assert calls == ["run started"]
    assert [r.getMessage() for r in caplog.records if "on_event" in r.getMessage()] == [
        "on_event: ConnectionError: no way\\nout; it isn't called again"
    ]
