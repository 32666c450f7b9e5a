"""Where timm's pre-trained weights are: their address and their file in the hub's cache."""

from __future__ import annotations

from typing import Any

from sppdet.features.timm_nets import PREFIX
from sppdet.vision import import_timm


def weights_address(name: str) -> str | None:
    """Return the address of the weights of `timm/NAME`; None where there are none. Needs timm."""
    config = _pretrained(name)
    if config is None:
        return None
    if not config.hf_hub_id:
        return config.url or None
    return f"https://huggingface.co/{config.hf_hub_id}/resolve/main/{_hub_file(config)}"


def cached_weights(name: str) -> str | None:
    """Return the file of the weights in the hub's cache, which needs no network; None without one."""
    config = _pretrained(name)
    if config is None or not config.hf_hub_id or config.custom_load:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(config.hf_hub_id, _hub_file(config))
    return found if isinstance(found, str) else None


def _hub_file(config: Any) -> str:
    return config.hf_hub_filename or "model.safetensors"


def _pretrained(name: str) -> Any:
    return import_timm().get_pretrained_cfg(name.removeprefix(PREFIX))
