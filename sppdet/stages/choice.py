"""Record what the user leaves open of the settings for a folder of images; see `presets`.

This module needs no torch: the command line reads settings before it is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from sppdet.config import Config
from sppdet.errors import ConfigError
from sppdet.io.settings import holds_images, load_config, load_for_images, settings_in

Preset = Literal["fast", "balanced", "accurate"]
PRESETS: tuple[Preset, ...] = get_args(Preset)


@dataclass(frozen=True)
class Choice:
    """Hold what a training of a folder of images may choose from, and what the user asks for."""

    packaged: Callable[[bool], Config]  # packaged settings; True: of layers that learn
    load: Callable[[bool], Config]  # the same with the user's
    preset: Preset | None = None  # None: by the device, or by `minutes`
    minutes: float | None = None
    fixed: frozenset[str] = field(default_factory=frozenset)  # settings that the user has set


def settings_and_choice(
    source: Path | str | Mapping[str, Any] | Config,
    overrides: Sequence[str] = (),
    *,
    preset: Preset | None = None,
    minutes: float | None = None,
) -> tuple[Config, Choice | None]:
    """Read the settings of a training and, for a folder of images, what is to be chosen.

    Args:
        source: see `load_config`; or settings that are read already, which take no `overrides`.

    Raises:
        ConfigError: settings that are wrong, or `preset` or `minutes` beside settings of their own.
    """
    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"preset: {preset!r}, expected one of {', '.join(PRESETS)}")
    if minutes is not None and not (isinstance(minutes, int | float) and minutes > 0):
        raise ConfigError(f"minutes: {minutes!r}, expected a number greater than 0")
    folder = Path(source) if isinstance(source, str | Path) else None
    if folder is None or not holds_images(folder):
        if preset or minutes:
            where = "settings" if folder is None else folder
            raise ConfigError(
                f"{where}: has settings of its own; preset and minutes are for a folder of images"
            )
        return (source if isinstance(source, Config) else load_config(source, overrides)), None
    images = folder

    @cache
    def load(tuned: bool) -> Config:
        return load_for_images(images, overrides, tuned=tuned)

    @cache
    def packaged(tuned: bool) -> Config:
        return load_for_images(images, tuned=tuned)

    choice = Choice(packaged, load, preset, minutes, settings_in(overrides))
    return load(preset in ("balanced", "accurate")), choice
