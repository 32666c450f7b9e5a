"""Areas of the tensors of a run: its model and its stores."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st

from campaigns.areas import JSON_TOKENS, Area, all_of, placed
from campaigns.areas_arrays import tensor_documents
from campaigns.verdict import judge
from campaigns.workspace import Workspace
from sppdet.cli.info import describe_run
from sppdet.features.folding import folded
from sppdet.io.backbone_weights import load_backbone
from sppdet.io.image_cache import ImageCache
from sppdet.io.splits import read_split
from sppdet.runs.artifacts import fingerprint_of, read_tensors, write_tensors
from sppdet.stages.detector import Detector
from sppdet.stages.map_cache import MapCache
from sppdet.stages.model_files import ModelFiles, read_run_config
from sppdet.stages.proposer import Proposer
from sppdet.types import AnnotatedImage


def model_areas(space: Workspace) -> list[Area]:
    run = space.run
    files = ModelFiles(run)
    image = np.full((40, 60, 3), 90, dtype=np.uint8)
    image[10:30, 10:30] = (200, 30, 30)
    found = []
    for path in (files.svm, files.bbox, files.head, files.backbone):
        plain = placed(
            path, all_of(lambda: describe_run(run), lambda: Detector.load(run)), name="run"
        )
        found.append(
            Area(
                f"model-{path.stem}", path.suffix, [path.read_bytes()], plain,
                tensor_documents(path.read_bytes()), JSON_TOKENS, weight=0.5,
            )
        )  # fmt: skip
        made_by = fingerprint_of(path) or ""
        tensors, about = _copies(path)

        def sealed_again(
            data: bytes, path: Path = path, tensors: dict[str, torch.Tensor] = tensors,
            about: dict[str, object] = about, made_by: str = made_by,
        ) -> str | None:  # fmt: skip
            """A file that says it is whole, of other tensors: as by a faulty or malicious writer."""
            kept = {p: p.read_bytes() for p in (path, files.sealed)}
            try:
                changed, facts = _changed_tensors(data, tensors, about)
                write_tensors(path, changed, made_by=made_by, about=facts)
                seal = json.loads(kept[files.sealed]) | {"parts": files.fingerprint()}
                files.sealed.write_text(json.dumps(seal))

                def use() -> None:
                    found = Detector.load(run)(image)
                    if not np.isfinite(found.scores).all() or not np.isfinite(found.boxes).all():
                        raise ValueError("detections that aren't finite")

                return judge(all_of(lambda: describe_run(run), use))
            finally:
                for kept_path, content in kept.items():
                    kept_path.write_bytes(content)

        found.append(
            Area(f"sealed-{path.stem}", ".bin", [bytes([k, k]) for k in range(6)], sealed_again,
                 st.binary(min_size=2, max_size=8), weight=0.7)
        )  # fmt: skip
    return found


def _copies(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """A file's tensors, not shared with the file, and its facts."""
    tensors, about = read_tensors(path)
    return {name: tensor.clone() for name, tensor in tensors.items()}, about


def _changed_tensors(
    data: bytes, tensors: dict[str, torch.Tensor], about: dict[str, object]
) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Tensors and facts with one change for every two bytes of `data`."""
    changed, facts = dict(tensors), dict(about)
    types = (torch.float16, torch.float64, torch.int64, torch.bool, torch.bfloat16, torch.uint8)
    for where, how in zip(data[::2], data[1::2], strict=False):
        names = sorted(changed)
        if how % 16 >= 12 and facts:
            key = sorted(facts)[where % len(facts)]
            other: tuple[object, ...] = (
                None,
                [],
                ["a"],
                "fc7",
                3,
                {"a": 1},
                [1],
                "pool5",
                ["a", "a"],
                "",
            )
            facts[key] = other[how // 16 % len(other)]
            continue
        if not names:
            continue
        name = names[where % len(names)]
        tensor = changed[name]
        change = how % 12
        if change == 0:
            del changed[name]
        elif change == 1:
            changed[name] = tensor.flatten()
        elif change == 2:
            changed[name] = tensor[:0] if tensor.ndim else tensor[None][:0]
        elif change == 3:
            changed[name] = tensor.to(types[where % len(types)])
        elif change == 4:
            value = float(("nan", "inf", "-inf", "1e38")[where % 4])
            if tensor.is_floating_point():
                changed[name] = torch.full(tensor.shape, value).to(tensor.dtype)
        elif change == 5:
            changed[f"{name}x"] = changed.pop(name)
        elif change == 6:
            changed[name] = tensor[:-1] if tensor.ndim and len(tensor) else tensor
        elif change == 7:
            changed[name] = tensor.unsqueeze(0)
        elif change == 8:
            changed["extra"] = tensor
        elif change == 9:
            changed[name] = torch.cat([tensor, tensor]) if tensor.ndim else tensor
        elif change == 10:
            changed[name] = (
                tensor.transpose(0, -1).contiguous() if tensor.ndim > 1 else tensor[None]
            )
        else:
            changed[name] = torch.zeros_like(tensor)
    return {name: tensor.clone() for name, tensor in changed.items()}, facts  # no shared memory


def store_areas(space: Workspace) -> list[Area]:
    run = space.run
    config = read_run_config(run)
    images = ImageCache.load(run / "images.json")
    dataset = read_split(config.data, "train", None, images, workers=1)
    proposer = Proposer(config.proposals, run / "store")
    backbone = folded(load_backbone(config.backbone.name, "none", seed=config.seed))
    maps = MapCache(backbone, config.scales, config.features, images, run / "store")
    by_file = {}
    for image in dataset.images:  # a stored item's name tells nothing of its image
        digest = images.digest(image.path)
        for kind, store in (("proposals", proposer.store), ("maps", maps.store)):
            assert store is not None
            by_file[kind] = (store.path(image.id, digest), image)

    def propose(image: AnnotatedImage) -> None:
        boxes = proposer.of_image(image, images).boxes
        if boxes.dtype != np.float32 or boxes.shape[1:] != (4,) or not np.isfinite(boxes).all():
            raise ValueError(f"proposals {boxes.dtype} {boxes.shape}")

    def map_(image: AnnotatedImage) -> None:
        found = maps.of_image(image)
        channels = {m.shape[0] for m in found.maps}
        if len(found.maps) != len(config.scales) or channels != {maps.channels}:
            raise ValueError("maps of a wrong shape")
        if not all(torch.isfinite(m).all() for m in found.maps):
            raise ValueError("maps that aren't finite")

    areas = []
    for kind, (path, image) in by_file.items():
        use = partial(propose, image) if kind == "proposals" else partial(map_, image)
        content = path.read_bytes()
        areas.append(
            Area(
                f"store-{kind}",
                ".safetensors",
                [content],
                placed(path, use),
                tensor_documents(content),
                JSON_TOKENS,
            )
        )
        tensors, about = _copies(path)
        made_by = fingerprint_of(path) or ""

        def resealed(
            data: bytes, path: Path = path, content: bytes = content, use: Callable[[], None] = use,
            tensors: dict[str, torch.Tensor] = tensors, about: dict[str, object] = about,
            made_by: str = made_by,
        ) -> str | None:  # fmt: skip
            changed, facts = _changed_tensors(data, tensors, about)
            try:
                write_tensors(path, changed, made_by=made_by, about=facts)
                return judge(use, path.name)
            finally:
                path.write_bytes(content)

        areas.append(
            Area(f"resealed-{kind}", ".bin", [bytes([k, k]) for k in range(6)], resealed,
                 st.binary(min_size=2, max_size=6), weight=0.5)
        )  # fmt: skip
    return areas
