"""The plan of a large training: its arithmetic by hand, and what it reads from a small run."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import plan
import plan_costs
import plan_model as model
import pytest
import train
from plan_model import Costs, Run, Size

from sppdet.runs.artifacts import read_json, read_tensors

GB = 10**9


def run_of(images: int, negatives: float = 400, **seconds: float) -> Run:
    size = Size(images, 3.0 * images, 4, 10 * images, images // 5)
    return Run(size, seconds, negatives, 100, 5000.0, 2000.0, 0.5)


def costs_of(*runs: Run) -> Costs:
    return Costs(runs, "cpu", "made", 1000, 2000, True, 3000, 1e-6)


LARGE = Size(images=100_000, objects=700_000, classes=80, batches=1000, test=5000)


def test_seconds_by_hand() -> None:
    costs = costs_of(
        run_of(10, proposals=5, finetune=40, svm=3, bbox=9), run_of(40, proposals=14, finetune=10)
    )
    # 12 and 48 images are searched: 0.25 s for each, 2 s fixed
    found = model.seconds(costs, LARGE)
    assert found["proposals"] == pytest.approx(2 + 0.25 * 105_000)
    assert found["finetune"] == pytest.approx(40)  # that falls doesn't fall below zero
    assert "data" not in found
    one = model.seconds(costs_of(run_of(10, proposals=6, data=3, finetune=5)), LARGE, processes=8)
    assert one["proposals"] == pytest.approx(0.5 * 105_000 / 8)
    assert one["data"] == pytest.approx(2 * 0.25 * 105_000)  # the others read after the first
    assert one["finetune"] == pytest.approx(0.05 * 1000)


def test_negatives_by_hand() -> None:
    costs = costs_of(run_of(10, 400), run_of(20, 1), run_of(40, 800))
    assert model.negatives(costs, replace(LARGE, images=160)) == pytest.approx(400)  # as the root
    bounded = replace(LARGE, images=160, max_negatives=-1700)
    assert model.negatives(costs, bounded) == pytest.approx(300)
    falling = costs_of(run_of(10, 400), run_of(40, 200))
    assert model.negatives(falling, LARGE) == pytest.approx(50)
    assert model.negatives(costs_of(run_of(10, 400)), replace(LARGE, images=30)) == 300
    # trainings of 1 + 300 / 2000, each on all objects and half of the negatives; five folds on all
    expected = 1.15 * (700_000 + 80 * 150) + 5 * (700_000 + 80 * 300)
    assert model.solving(costs, bounded) == pytest.approx(1e-6 * expected)


def test_bytes_by_hand() -> None:
    costs = costs_of(run_of(10, 400))
    disk = model.disk(costs, LARGE)
    assert disk["features"] == 2 * 5000 * 100_000  # mirrored as well
    assert disk["proposals"] == 2000 * 105_000
    assert disk["evaluate"] == 28 * 0.5 * 80 * 5000
    limited = replace(LARGE, max_negatives=0)
    things = {t.what: t for t in model.held(costs, limited, on_gpu=True, image_bytes=1000)}
    assert things["annotations and images.json"].size == 10**8
    assert things["features of objects"].size == 4 * 1000 * 700_000
    assert things["pool of examples"].size == 4 * 1000 * (700_000 + 80 * 2000)
    assert things["pool of examples"].place == "GPU"
    peaks = model.peaks(list(things.values()), base=10**9)
    assert peaks["svm"]["GPU"] == things["pool of examples"].size
    swept = things["first sweep's duals"].size
    assert peaks["svm"]["host"] == 11 * 10**8 + 4 * 1000 * 700_000 + swept
    assert peaks["proposals"] == {"host": 11 * 10**8, "GPU": 0}
    limits: dict[model.Place, float] = {"host": 2 * GB, "GPU": 3 * GB, "disk": 2 * GB}
    beyond = model.breaking(list(things.values()), limits)
    assert [t.what for t in beyond] == ["features of objects", "pool of examples"]
    without = model.held(costs, LARGE, on_gpu=False, image_bytes=1000)
    assert {t.place for t in without} == {"host", "disk"}


@pytest.fixture(scope="module")
def costs(trained: Path) -> Costs:
    counts = train.Counts(12, 30, 6)
    return plan_costs.costs_of(
        trained, [plan_costs.record(trained, counts, device="cpu")], device="cpu", name="small"
    )


def test_a_run_is_recorded(costs: Costs, trained: Path, demo_root: Path) -> None:
    (run,) = costs.runs
    names = (demo_root / "ImageSets" / "Main" / "trainval.txt").read_text().split()
    files = [demo_root / "Annotations" / f"{name}.xml" for name in names]
    assert run.size.objects == sum(file.read_text().count("<object>") for file in files)
    assert run.size.classes == 4
    wall = plan_costs.record(trained, train.Counts(12, 30, 6), device="cuda").seconds
    timings = read_json(trained / "timings.json")
    assert wall == {stage: timings[stage] for stage in wall} and timings.keys() - wall == {
        "ranking"
    }
    assert run.seconds.keys() == wall.keys() and run.seconds != wall
    maps = [p.stat().st_size for p in (trained / "store").glob("maps-*/*")]
    assert run.map_bytes == pytest.approx(np.mean(maps), rel=0.1)  # and a header
    boxes = [len(read_tensors(p)[0]["boxes"]) for p in (trained / "store").glob("proposals-*/*")]
    assert run.proposals == pytest.approx(np.mean(boxes))
    said = (trained / "log.jsonl").read_text()
    assert 0 < run.negatives < 4 * 12 * 150 and "svm: hard negatives: " in said
    last = said.split("svm: hard negatives: ")[1].split('"')[0].split("\\n")[0]
    counted = [int(part.split()[-1]) for part in last.split(", ")]
    assert run.negatives == sum(counted)
    assert costs.width == 32 and costs.pooled == 50 * 128 and costs.mirrored
    assert costs.solve > 0


def test_a_plan_is_printed_from_a_file_of_costs(
    costs: Costs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    larger = [replace(costs.runs[0], size=replace(costs.runs[0].size, images=n)) for n in (24, 48)]
    file = tmp_path / "costs.json"
    plain = plan_costs.as_json(replace(costs, runs=[*costs.runs, *larger]))
    file.write_text(json.dumps(plain))
    again = plan_costs.read_costs(file)
    assert json.loads(json.dumps(plan_costs.as_json(again))) == json.loads(json.dumps(plain))
    rows = [{"row": plan_costs.TRAINING, "facts": {"costs": plain}}]
    file.write_text(json.dumps({"machine": {}, "rows": rows}))  # as of benchmarks/gpu.py
    limits = ["--disk-gb", "1", "--images", "500000", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["plan.py", "--costs", str(file), *limits])
    plan.main()
    out = capsys.readouterr().out
    assert "Predicted from 12 and 24 images for 48" in out
    stages = [s for s in model.STAGES if s in costs.runs[0].seconds]
    assert all(f"\n| {stage} | " in out for stage in stages)
    assert out.rstrip().endswith("What breaks first: features: feature maps")
    file.write_text("{}")
    with pytest.raises(SystemExit, match="expected costs, or the row"):
        plan.main()


def test_memory_of_annotations_is_measured(tmp_path: Path) -> None:
    few, many = (plan_costs.image_bytes(n, count=100) for n in (1, 60))
    assert many - few == pytest.approx(59 * (16 + 8 + 2), rel=0.3)  # boxes, labels, flags
    read = [plan_costs.reading_bytes(tmp_path, 4, count=n) for n in (50, 200)]
    assert read[1] == pytest.approx(read[0], rel=0.35)
    # a number of the polygon alone takes 24 bytes and its place in the list
    assert read[1] > 4 * 46 * 32 and math.isfinite(read[1])
