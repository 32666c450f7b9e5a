"""Presets: by hand, and through the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from preset_samples import DATA, FAST, TUNED, config, dataset, load, small
from runs import CommandLine
from sppdet.config import Config
from sppdet.io.packaged_configs import config_for_images, packaged_config
from sppdet.io.settings import read_with_bases, settings_in, validate
from sppdet.runs.artifacts import write_json
from sppdet.stages import presets
from sppdet.stages.choice import PRESETS, Choice, Preset
from sppdet.stages.forecast import Speed, forecast
from sppdet.stages.presets import Chosen, are_small, candidate, describe
from sppdet.types import Dataset


def tuned(**finetune: Any) -> Config:
    """The settings of a network that learns, with other values of fine-tuning."""
    return config(**{**TUNED, "finetune": {**TUNED["finetune"], **finetune}})


OPEN = Choice(load, load)  # nothing is set by the user


def test_batches_grow_slower_than_the_number_of_images() -> None:
    def batches(preset: Any, images: int) -> int:
        return int(candidate(OPEN, preset, dataset(images, side=200)).values["finetune.batches"])

    assert batches("balanced", 500) == batches("accurate", 500) == 1000  # those of the settings
    assert batches("balanced", 100) == 393  # 1000 · 0.2^0.58
    assert batches("balanced", 2000) == 2235  # 4^0.58
    assert batches("balanced", 3) >= 50
    assert "finetune.batches" not in candidate(OPEN, "fast", dataset(100, side=200)).values


def test_what_a_run_keeps_is_not_of_settings_that_were_tried() -> None:
    own = tuned(batches=20, image_scales=[64, 96]).model_copy(update={"scales": [120]})
    tried = Choice(load, lambda _: own)
    images = dataset(100, side=100)
    expected = candidate(OPEN, "balanced", images)
    assert candidate(tried, "balanced", images) == expected


def test_images_are_passed_over_as_often_whatever_a_batch_has() -> None:
    for count, batches in ((1, 786), (2, 393), (8, 98)):
        choice = Choice(load, lambda _, count=count: tuned(batch_images=count))  # type: ignore[misc]
        found = candidate(choice, "balanced", dataset(100, side=100)).values
        assert found["finetune.batches"] == batches


def test_a_head_of_the_user_has_the_batches_of_a_network_that_learns() -> None:
    own = {**FAST, "head": {"widths": [32]}, "finetune": {"layers": "fc"}}
    choice = Choice(load, lambda _: config(**own))
    assert candidate(choice, "fast", dataset(500, side=100)).values["finetune.batches"] == 1000


@pytest.mark.parametrize("name, batches", [("lite0_tuned", 600), ("squeezenet_tuned", 393)])
def test_packaged_settings_pass_over_100_images_so_often(name: str, batches: int) -> None:
    """Twelve times with Lite0; eight times with SqueezeNet, which was not measured with more."""

    def packaged(_: bool) -> Config:
        return validate({**read_with_bases(packaged_config(name)), "data": DATA}, name, Config)

    found = candidate(Choice(packaged, packaged), "balanced", dataset(100, side=200)).values
    assert found["finetune.batches"] == batches


def test_small_objects_have_larger_scales() -> None:
    large, small = dataset(8, side=100), dataset(8, side=20)
    assert are_small(small, scale=480) and not are_small(large, scale=480)
    assert not are_small(Dataset("s", ("a",), ()), scale=480)
    for preset, wanted in (("fast", [480]), ("balanced", [320]), ("accurate", [320])):
        assert candidate(OPEN, preset, large).values["scales"] == wanted  # type: ignore[arg-type]
    assert candidate(OPEN, "fast", small).values["scales"] == [720]
    found = candidate(OPEN, "balanced", small).values
    assert found["scales"] == [480] and found["finetune.image_scales"] == [384, 576]


def test_accurate_is_balanced_that_detects_in_mirror_images_as_well() -> None:
    choice, images = OPEN, dataset(8, side=100)
    fast, balanced, accurate = (candidate(choice, p, images).applied(choice) for p in PRESETS)
    assert [c.detect.flip for c in (fast, balanced, accurate)] == [False, False, True]
    assert accurate.model_copy(update={"detect": balanced.detect}) == balanced
    said = describe("accurate", accurate)
    assert said.endswith(" batches; images at 320 px; detects in mirror images as well")
    assert describe("balanced", balanced).endswith(" batches; images at 320 px")
    fixed = Choice(load, load, fixed=frozenset({"detect.flip"}))
    assert not candidate(fixed, "accurate", images).applied(fixed).detect.flip


@pytest.mark.parametrize("preset", PRESETS)
def test_a_choice_that_is_kept_is_read_again(
    preset: Preset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = candidate(OPEN, preset, dataset(8, side=100))
    asked = {"preset": preset, "minutes": None}
    write_json(tmp_path / "preset.json", {"asked": asked, **vars(chosen)})
    assert presets._stored(tmp_path / "preset.json", asked) == chosen
    assert not caplog.text


def test_presets_fit_boxes_to_fewer_examples() -> None:
    images = dataset(8, side=100)
    found = {p: candidate(OPEN, p, images).applied(OPEN).bbox for p in PRESETS}
    assert [b.max_examples if b else None for b in found.values()] == [1500] * 3
    assert list(found) == ["fast", "balanced", "accurate"]
    fixed = Choice(load, load, fixed=frozenset({"bbox.max_examples"}))
    own = candidate(fixed, "fast", images).applied(fixed).bbox
    assert own is not None and own.max_examples == 10_000
    without = Choice(load, lambda _: config(**{**FAST, "bbox": None}))
    assert candidate(without, "fast", images).applied(without).bbox is None


def test_what_the_user_has_set_stays() -> None:
    images = dataset(100, side=200)
    chosen = candidate(OPEN, "balanced", images)
    fixed = Choice(load, load, fixed=frozenset({"scales", "finetune.batches"}))
    found, own = chosen.applied(OPEN), chosen.applied(fixed)
    assert found.finetune is not None and own.finetune is not None
    assert (found.finetune.batches, own.finetune.batches) == (393, 1000)
    small = candidate(fixed, "balanced", dataset(100, side=20))
    assert small.applied(fixed).scales == [320]
    assert small.applied(OPEN).scales == [480]
    assert own.finetune.image_scales == [256, 384]


def batches_of_12(fraction: float) -> int:
    """Batches for the 12 images of the demo by the packaged settings."""
    batches: int = read_with_bases(config_for_images(tuned=True))["finetune"]["batches"]
    grown: float = batches * (12 / 500) ** 0.58
    return round(fraction * grown)


def test_a_preset_is_chosen_once(sppdet: CommandLine, demo_root: Path, tmp_path: Path) -> None:
    folder = demo_root
    run = tmp_path / "run"
    words = ("train", folder, "--run", run, "--until", "data", *small("finetune.image_scales=null"))
    status, out, err = sppdet(*words, "--preset", "balanced")
    assert status == 0, err
    assert "preset balanced: the network learns, " in out
    first = json.loads((run / "preset.json").read_text())
    assert first["asked"] == {"preset": "balanced", "minutes": None}
    assert first["values"]["finetune.batches"] == batches_of_12(1.0)
    written = (run / "config.yaml").read_text()
    assert f"batches: {first['values']['finetune.batches']}" in written and "- 120" in written
    plain = ("train", folder, "--run", run, "--until", "data", *small())
    status, out, err = sppdet(*plain)  # goes on with what was chosen
    assert status == 0 and "preset balanced" in out, err
    status, out, err = sppdet(*plain, "--preset", "fast")
    assert status == 0 and "preset fast: the network as it is, images at 120 px" in out, err


def test_minutes_choose_what_fits(
    sppdet: CommandLine, demo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = Speed(
        search=0.2,
        layers=0.0,
        windows={"pool5": 0.0, "fc6": 0.0},
        detected=0.0,
        step=10.0,
        width=6400,
    )
    measured: list[bool] = []
    totals: list[float] = []

    def measure(_: Any, config: Config) -> Speed:
        measured.append(config.head is not None)
        return speed

    def recorded(*given: Any, tests: int) -> dict[Any, float]:
        found = forecast(*given, tests=tests)
        totals.append(sum(found.values()))
        return found

    monkeypatch.setattr("sppdet.stages.presets.loaded_and_measured", measure)
    monkeypatch.setattr("sppdet.stages.presets.forecast", recorded)

    def chosen(minutes: str, *more: str) -> tuple[str, str]:
        run = tmp_path / f"{minutes}{''.join(more)}"
        words = ("--run", run, "--until", "data", "--minutes", minutes, *more)
        status, _, err = sppdet("train", demo_root, *words, *small())
        assert status == 0, err
        return str(json.loads((run / "preset.json").read_text())["preset"]), err

    assert chosen("1000")[0] == "accurate" and measured == [True]
    assert chosen("0.3")[0] == "fast" and measured == [True, True, False]  # by its own settings
    assert chosen("1000", "--preset", "fast")[0] == "fast"
    assert chosen("1000", "--preset", "balanced")[0] == "balanced"
    stored = json.loads((tmp_path / "1000--presetbalanced" / "preset.json").read_text())
    assert stored["values"]["finetune.batches"] == batches_of_12(1.0)  # not the shorter one
    limit = f"{0.9 * totals[-1] / 60:.3f}"
    assert chosen(limit)[0] == "balanced"
    stored = json.loads((tmp_path / limit / "preset.json").read_text())
    assert stored["values"]["finetune.batches"] == batches_of_12(2 / 3)
    status, _, err = sppdet("train", demo_root, "--run", tmp_path / "inf", "--minutes", "inf")
    assert status == 2 and "--minutes" in err
    preset, err = chosen("0.1")
    assert preset == "fast" and "even the least takes about 9 s" in err
    speed = replace(speed, windows={"pool5": 0.0, "fc6": 1.0}, detected=1.0)
    totals.clear()
    assert chosen("999")[0] == "accurate" and len(totals) == 1
    limit = f"{totals[0] / 60 - 0.01:.3f}"  # too few for the mirror images
    assert chosen(limit)[0] == "balanced" and len(totals) == 3
    stored = json.loads((tmp_path / limit / "preset.json").read_text())
    assert stored["values"]["finetune.batches"] == batches_of_12(1.0)


@pytest.mark.parametrize(
    "values",
    [
        *("abc", {"scales": "abc"}, {"scales": None}, {"scales": [-5]}, {"scales": [120.5]}),
        *({"scales": [10**12]}, {"scales": []}, {"scales": [200, 100]}, {"svm.C": 1}),
        *({"finetune.batches": "9"}, {"finetune.batches": 0}, {"finetune.image_scales": [9]}),
        *({"bbox.max_examples": 0}, {"detect.flip": "twice"}),
    ],
)
def test_a_damaged_choice_is_made_again(
    values: Any, sppdet: CommandLine, demo_root: Path, tmp_path: Path
) -> None:
    path = tmp_path / "preset.json"
    asked = {"preset": "fast", "minutes": None}
    path.write_text(json.dumps({"asked": asked, "preset": "fast", "values": values}))
    words = ("--run", tmp_path, "--until", "data", "--preset", "fast")
    status, _, err = sppdet("train", demo_root, *words, *small())
    assert status == 0 and "; a preset is chosen again" in err, err
    scales = read_with_bases(config_for_images())["scales"]
    assert json.loads(path.read_text())["values"]["scales"] == scales
    assert "- 120" in (tmp_path / "config.yaml").read_text()


def test_a_section_that_the_user_has_set_stays() -> None:
    fixed = settings_in(["finetune={batches: 7, image_scales: null}", "scales=[64]", "svm.C=1"])
    assert fixed == {"finetune.batches", "finetune.image_scales", "scales", "svm.C"}
    assert settings_in(["finetune={lr: 1}", "finetune=none"]) == {"finetune"}
    chosen = Chosen("balanced", {"finetune.batches": 400, "finetune.image_scales": [64, 96]})
    own = tuned(batches=7, image_scales=None)
    found = chosen.applied(Choice(load, lambda _: own, fixed=fixed)).finetune
    assert found is not None and (found.batches, found.image_scales) == (7, None)


def test_without_a_head_nothing_is_tuned() -> None:
    bare = config(**{**TUNED, "head": None})
    chosen = candidate(Choice(load, lambda _: bare), "balanced", dataset(100, side=200))
    assert set(chosen.values) == {"scales", "bbox.max_examples"}
    assert describe("balanced", bare).startswith("balanced: the network as it is")
    speed = Speed(
        search=1.0, layers=1.0, windows={"pool5": 1.0}, detected=1.0, step=1.0, width=6400
    )
    found = forecast(bare, speed, dataset(10, side=200), tests=0)
    assert "finetune" not in found
    assert found["features"] == pytest.approx(10 * 320**2 * 4 / 3 / 1e6)


def test_settings_of_their_own_take_no_preset(sppdet: CommandLine, settings: Path) -> None:
    status, _, err = sppdet("train", settings, "--preset", "fast")
    assert status == 1 and err.count("\n") == 1
    assert "preset and minutes are for a folder of images" in err
