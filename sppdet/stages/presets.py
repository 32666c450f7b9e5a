"""Presets for a folder of images: settings that suit its images, its objects and the time there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sppdet.config import Config
from sppdet.errors import ArtifactError, ConfigError
from sppdet.io.packaged_configs import config_for_images
from sppdet.io.settings import validate
from sppdet.runs.artifacts import read_json, write_json
from sppdet.runs.log import LOGGER, event
from sppdet.runs.progress import duration
from sppdet.stages.choice import PRESETS, Choice, Preset
from sppdet.stages.forecast import Speed, forecast, loaded_and_measured
from sppdet.types import Dataset

if TYPE_CHECKING:
    from sppdet.stages.context import Context

_SMALL_PX = 24  # at the detector's scale: one and a half cells of stride 16
_LARGER = 1.5  # factor on the scales where a quarter of the objects are smaller
_IMAGES = 500  # that the batches of the packaged settings are for
_POWER = 0.58  # of the number of images, which batches grow by (docs/choices.md)
# of balanced's batches that `--minutes` may leave: these were measured, and are better than fast; half of
# them may be worse (docs/choices.md)
_FEWEST = 2 / 3
_SMALLER = 2 / 3  # factor on the scales of the last resort
# of a class in box regression: windows around one object are nearly the same, and their products take
# most of that stage (docs/choices.md)
_EXAMPLES = 1500
_KEYS = frozenset(  # that a choice has
    {"scales", "bbox.max_examples", "finetune.batches", "finetune.image_scales", "detect.flip"}
)


@dataclass(frozen=True)
class Chosen:
    """A preset with the values of its settings that depend on the data."""

    preset: Preset
    values: Mapping[str, Any]  # setting -> value

    def applied(self, choice: Choice) -> Config:
        """Put the values into the settings of the preset, except where the user has set them.

        Raises:
            ConfigError: the settings contradict each other.
        """
        raw = choice.load(self.preset != "fast").model_dump(mode="json")
        values = {key: v for key, v in self.values.items() if key not in choice.fixed}
        return validate(_put(raw, values), f"preset {self.preset}", Config)


def choose(context: Context, choice: Choice) -> Config:
    """Choose the settings of a run once; later calls take what was chosen, unless they ask for more.

    `preset.json` of the run keeps the choice, since speeds vary from one measurement to the next.
    """
    path, data = context.run / "preset.json", context.config.data
    asked = {"preset": choice.preset, "minutes": choice.minutes}
    chosen = _stored(path, asked)
    if chosen is None:
        chosen = _chosen(context, choice)
        if context.ranks.is_first:
            write_json(path, {"asked": asked, **vars(chosen)})
    config = chosen.applied(choice).model_copy(update={"data": data})
    name = config_for_images(tuned=chosen.preset != "fast").stem
    better = "" if name.startswith("lite0") else "; `pip install timm` has a better network"
    said, extra = describe(chosen.preset, config), event("preset", settings=name, **vars(chosen))
    LOGGER.info(
        "preset %s (`sppdet init %s` prints the settings)%s", said, name, better, extra=extra
    )
    return config


def describe(preset: Preset, config: Config) -> str:
    """Describe what a preset does in a few words."""
    scales = ", ".join(map(str, config.scales))
    images = f"images at {scales} px"
    if config.detect.flip:
        images += "; detects in mirror images as well"
    tuning = config.tuning()
    if tuning is None:
        return f"{preset}: the network as it is, {images}"
    return f"{preset}: the network learns, {tuning.batches:,} batches; {images}"


def _chosen(context: Context, choice: Choice) -> Chosen:
    dataset = context.training_set
    if choice.minutes is None:
        on_gpu = context.ranks.device.type == "cuda"
        return candidate(choice, choice.preset or ("accurate" if on_gpu else "fast"), dataset)
    wanted = [choice.preset] if choice.preset else list(PRESETS)
    candidates = [candidate(choice, preset, dataset) for preset in reversed(wanted)]
    if "balanced" in wanted:
        shorter = candidate(choice, "balanced", dataset, fraction=_FEWEST)
        candidates.insert(wanted[::-1].index("balanced") + 1, shorter)
    if "fast" in wanted:
        candidates.append(candidate(choice, "fast", dataset, smaller=_SMALLER))
    tests = len(context.test_set) if context.test_set is not None else 0
    speeds: dict[bool, Speed] = {}
    for chosen in candidates:
        config, tuned = chosen.applied(choice), chosen.preset != "fast"
        speed = speeds[tuned] = speeds.get(tuned) or loaded_and_measured(context, config)
        seconds = sum(forecast(config, speed, dataset, tests=tests).values())
        if seconds <= 60 * choice.minutes:
            return chosen
    LOGGER.warning(
        "--minutes %g: even the least takes about %s; expected more minutes or fewer images",
        *(choice.minutes, duration(seconds)),
    )
    return chosen


def candidate(
    choice: Choice,
    preset: Preset,
    dataset: Dataset,
    *,
    fraction: float = 1.0,
    smaller: float = 1.0,
) -> Chosen:
    """Fit a preset to a training set.

    Small objects have larger scales. The passes over the images fall with their number: with n of
    them the batches are those of the packaged settings times (n / 500)^0.58. accurate is balanced that
    detects in the mirror image as well. A run keeps these values, which no setting of the user's changes,
    except that batches of more images are fewer.

    Args:
        fraction: of the batches that are taken.
        smaller: factor on the scales.
    """
    scales = choice.packaged(preset != "fast").scales
    small = are_small(dataset, scale=round(max(scales) * smaller))
    grown = smaller * (_LARGER if small else 1.0)
    values: dict[str, Any] = {
        "scales": [_even(scale * grown) for scale in scales],
        "bbox.max_examples": _EXAMPLES,
    }
    if preset == "accurate":
        values["detect.flip"] = True
    tuning = choice.load(preset != "fast").tuning()
    packaged = choice.packaged(True).tuning()
    if tuning is not None and packaged is not None:
        batches = fraction * packaged.batches * (max(1, len(dataset)) / _IMAGES) ** _POWER
        batches *= packaged.batch_images / tuning.batch_images
        values["finetune.batches"] = max(50, round(batches))
        if tuning.image_scales is not None and packaged.image_scales is not None:
            values["finetune.image_scales"] = [_even(s * grown) for s in packaged.image_scales]
    return Chosen(preset, values)


def are_small(dataset: Dataset, *, scale: int) -> bool:
    """Check whether a quarter of the objects have a side below one and a half cells of stride 16."""
    sides = [
        (image.gt_boxes[:, 2:] - image.gt_boxes[:, :2]).min(axis=1)
        * (scale / min(image.width, image.height))
        for image in dataset.images
        if len(image.gt_boxes)
    ]
    return bool(sides) and float(np.quantile(np.concatenate(sides), 0.25)) < _SMALL_PX


def _even(side: float) -> int:
    """Round to a multiple of 16 pixels."""
    return max(16, round(side / 16) * 16)


def _stored(path: Path, asked: Mapping[str, Any]) -> Chosen | None:
    """Read an earlier choice; None where there is none, it isn't one, or something else is asked for."""
    if not path.exists():
        return None
    try:
        found = read_json(path)
        if not isinstance(found, dict) or found.get("preset") not in PRESETS:
            raise ArtifactError(f"{path}: damaged: expected a preset")
        values = found.get("values")
        if not isinstance(values, dict) or not set(values) <= _KEYS:
            raise ArtifactError(f"{path}: damaged: expected values of {', '.join(sorted(_KEYS))}")
        raw = {"data": {"root": "."}, "bbox": {}, "detect": {}, "finetune": {"sampling": "images"}}
        validate(_put(raw, values), str(path), Config)
    except (ArtifactError, ConfigError) as error:
        LOGGER.warning("%s; a preset is chosen again", error)
        return None
    if asked not in (found.get("asked"), {"preset": None, "minutes": None}):
        return None
    return Chosen(found["preset"], values)


def _put(raw: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Put values of settings into plain data, but not into sections that are none."""
    for key, value in values.items():
        *sections, last = key.split(".")
        section = raw[sections[0]] if sections else raw
        if section is not None:
            section[last] = value
    return raw
