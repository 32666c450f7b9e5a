"""The configs that come with sppdet: the folder `configs` of a clone, `sppdet.configs` in a wheel."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from sppdet.errors import ConfigError, did_you_mean

# What `../` in a packaged config leads to is the working folder, where `sppdet download` puts its data.
_AS_IF_IN = "configs"


def packaged_configs() -> dict[str, Path]:
    """List the packaged configs by name, sorted."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    folder = installed if installed.is_dir() else package.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def packaged_config(name: str) -> Path:
    """Find a packaged config by its name, with or without `.yaml`.

    Raises:
        ConfigError: there is no such config; the message has those of similar names.
    """
    known = packaged_configs()
    stem = name.removesuffix(".yaml")
    if stem in known:
        return known[stem]
    hint = did_you_mean(stem, known, most=3) or "; `sppdet init --list` has them all"
    raise ConfigError(f"{name}: no such file, and no packaged config of that name{hint}")


def config_for_images(*, tuned: bool = False) -> Path:
    """Choose the packaged config for own images: that of lite0 or, without timm, of squeezenet.

    Args:
        tuned: take the one whose convolutional layers learn.
    """
    has_timm = importlib.util.find_spec("timm") is not None
    return packaged_config(
        f"{'lite0' if has_timm else 'squeezenet'}_{'tuned' if tuned else 'small'}"
    )


def find_config(path: Path) -> tuple[Path, Path | None]:
    """Find a file of settings: an existing file, or a packaged config by its name.

    Of a bare name, `NAME` and `NAME.yaml` in the working folder come before the packaged config.

    Returns:
        The file, and the folder that relative paths in it start from; None: the file's own.

    Raises:
        ConfigError: a bare name of neither.
    """
    if len(path.parts) != 1 or "\0" in path.name or (path.exists() and not path.is_dir()):
        return path, None
    own = Path(f"{path.name.removesuffix('.yaml')}.yaml")
    if own.is_file():
        return own, None
    return packaged_config(path.name), Path.cwd() / _AS_IF_IN
