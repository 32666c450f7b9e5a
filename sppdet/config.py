"""The settings of a run: one YAML file, checked against the types below.

Every default is the paper's value (He et al., arXiv 1406.4729v4) unless its line says otherwise.
A stage is handed its own section, never the whole. `config_file` reads them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from sppdet import plain_yaml
from sppdet.errors import ConfigError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Layer = Literal["pool5", "fc6", "fc7"]


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _ascending(values: list[int]) -> list[int]:
    if values != sorted(set(values)):
        raise ValueError("expected ascending values without repeats")
    return values


def _interval(values: list[float]) -> list[float]:
    if values[0] >= values[1]:
        raise ValueError("expected [low, high] with low < high")
    return values


def _network(name: str) -> str:
    from sppdet.features.nets import problem_with_name  # imports torch, which takes its time

    problem = problem_with_name(name)
    if problem:
        raise ValueError(problem)
    return name


def none_of(value: Any) -> Any:
    """The word none as None."""
    return None if value == "none" else value


def _distinct(values: list[int]) -> list[int]:
    """Refuse a list with a value twice."""
    if len(values) != len(set(values)):
        raise ValueError("expected every level once")
    return values


SppLevels = Annotated[list[PositiveInt], Field(min_length=1), AfterValidator(_distinct)]


class Section(BaseModel):
    """A part of the settings: frozen, strict about types, without unknown keys."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class DataConfig(Section):
    """Pictures and annotations."""

    format: Literal["voc", "coco"] = "voc"
    root: Annotated[list[Path], BeforeValidator(_as_list), Field(min_length=1)]
    """One folder or several (such as VOC2007 and VOC2012)."""
    images: Path | None = None
    """Folder of the pictures, if it isn't the layout's own (`JPEGImages`; for COCO `root`)."""
    train: Annotated[list[str | None], BeforeValidator(_as_list), Field(min_length=1)]
    """Name of the set (VOC) or annotation file (COCO), for all roots or one each; null: not this root."""
    test: Annotated[list[str | None] | None, BeforeValidator(lambda v: v and _as_list(v))] = None
    classes: Literal["auto"] | Annotated[list[str], Field(min_length=1)] = "auto"
    """Class names in the order of their labels; auto: those of the training annotations, sorted."""
    on_error: Literal["stop", "skip"] = "stop"

    @model_validator(mode="after")
    def _sets_match_roots(self) -> DataConfig:
        for key, sets in (("train", self.train), ("test", self.test)):
            if sets is not None and len(sets) not in (1, len(self.root)):
                raise ValueError(f"{key} names {len(sets)} sets for {len(self.root)} roots")
        if self.classes != "auto" and len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: a name stands twice")
        return self

    def sets_of(self, split: str) -> list[str | None]:
        """One set name per root: of train or test, or `split` itself as the name of a set."""
        names = {"train": self.train, "test": self.test}.get(split, [split])
        if names is None:
            raise ConfigError(f"data.{split}: no set is named; expected one to evaluate on")
        return names if len(names) == len(self.root) else names * len(self.root)


class ProposalsConfig(Section):
    """Selective search, or boxes that others computed."""

    engine: Literal["sppdet", "opencv", "stored"] = "sppdet"
    """Who searches: sppdet itself, OpenCV (to compare with; slower), or others have: stored."""
    mode: Literal["fast", "quality"] = "fast"
    max_boxes: PositiveInt = 2000
    min_size: PositiveInt = 20
    """Least width and height, in pixels of the resized picture."""
    image_width: PositiveInt = 500
    """Pictures are resized to this width for the search; boxes are mapped back."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the pseudo-random order; apart from the run's, so that runs can share their proposals."""
    path: Annotated[
        list[Path] | None, BeforeValidator(lambda v: v if v is None else _as_list(v))
    ] = None
    """engine stored: .mat or .npz files, or folders of them; one or a list."""

    @model_validator(mode="after")
    def _stored_has_path(self) -> ProposalsConfig:
        if (self.engine == "stored") != (self.path is not None):
            raise ValueError("path: expected with engine: stored, and only there")
        return self


class BackboneConfig(Section):
    """The convolutional layers."""

    name: Annotated[str, AfterValidator(_network)] = "alexnet"
    """zf5 (the paper's), zf5_detector, convnet5, overfeat5, overfeat7, tiny, or a convolutional
    network of torchvision's (alexnet, vgg16, squeezenet1_1, resnet50, ...)."""
    weights: str = "imagenet"
    """imagenet (fetched by torchvision), none (random), a .safetensors/.pth file, or the run of a
    classifier (`sppdet pretrain`)."""


class FeaturesConfig(Section):
    """Feature maps and the choice of windows on them."""

    store: Literal["auto", "overflow"] | bool = "auto"
    """Which maps of training pictures (float16) go to disk: true: all; overflow: those that memory has no
    room for; false: none, they are computed when needed. auto: overflow on one GPU, else true."""
    canonical_size: PositiveInt = 224
    """A window is pooled at the scale that brings its area nearest to the square of this."""
    max_side: PositiveInt = 2400
    """Cap on the longer side of a resized image (ours). Scales that it makes equal count once."""
    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Of the networks everywhere but in fine-tuning: auto is float16 on a GPU, float32 on a CPU."""


class HeadConfig(Section):
    """The fully connected layers fc6 and fc7 (one width: fc6 alone)."""

    widths: Annotated[list[PositiveInt], Field(min_length=1, max_length=2)] = [4096, 4096]
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5


class FinetuneConfig(Section):
    """Fine-tuning of the fully connected layers."""

    batches: PositiveInt = 300_000
    batch_size: PositiveInt = 128
    positive_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.25
    positive_iou: Fraction = 0.5
    negative_iou: Annotated[
        list[Fraction], Field(min_length=2, max_length=2), AfterValidator(_interval)
    ] = [0.1, 0.5]
    """Negatives have their greatest IoU in [first, second)."""
    lr: PositiveFloat = 1e-4
    drop_after: Fraction = 5 / 6
    """The learning rate is divided by 10 after this part of the batches (paper: 250k of 300k)."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    weight_decay: Annotated[float, Field(ge=0.0)] = 5e-4
    flip: bool = True
    scale: Literal["best", "random"] = "best"
    val_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Part of the training pictures on which the snapshot is chosen (ours; the paper doesn't say)."""
    snapshots: PositiveInt = 20
    """How many snapshots are compared, evenly spaced."""
    mixed_precision: bool = True
    """bfloat16 on GPUs that have it (ours)."""
    pool_images: PositiveInt = 32
    """Windows of this many pictures are pooled and shuffled together (ours)."""
    pool_windows: PositiveInt = 64
    """Windows drawn from each of them (ours)."""


class SvmConfig(Section):
    """One linear SVM a class, with hard negatives."""

    layer: Literal["auto", "pool5", "fc6", "fc7"] = "auto"
    """auto: the last layer there is, fc7 with the default head, pool5 with head: none."""
    C: PositiveFloat = 1e-3
    positive_weight: PositiveFloat = 2.0
    bias: PositiveFloat = 10.0
    """Value of the constant feature."""
    target_norm: PositiveFloat = 20.0
    """Features are scaled so that this is their mean norm."""
    norm_images: PositiveInt = 200
    norm_windows: PositiveInt = 200
    negative_iou: Fraction = 0.3
    """Negatives have IoU < this with every ground truth of the class."""
    negative_nms: Fraction = 0.7
    """Negatives with a greater IoU with an earlier one of the same picture are dropped; 1: none."""
    hard_threshold: float = -1.0001
    evict_threshold: float = -1.2
    retrain_after: PositiveInt = 2000
    passes: PositiveInt = 1
    solver: Literal["dual", "liblinear"] = "dual"
    """dual: ours, all classes that are due at once, on any device; liblinear: the reference, slower."""
    tolerance: PositiveFloat = 1e-3
    """dual: the duality gap, as a share of the objective, to stop at; liblinear: its own tolerance."""
    max_iterations: PositiveInt = 2000
    """Passes over a class's examples (dual: over those that it works on) at most."""


class BboxConfig(Section):
    """Ridge regression of box deltas, per class."""

    layer: Layer = "pool5"
    ridge: PositiveFloat = 1000.0
    """λ for features of mean norm `svm.target_norm` (R-CNN; the released SPP-net has 4000)."""
    min_iou: Fraction = 0.5
    whiten_epsilon: PositiveFloat = 1e-3
    max_examples: PositiveInt = 10_000
    """Examples a class at most, drawn at random (bounds the memory; ours)."""


class DetectConfig(Section):
    """From scores to detections."""

    nms: Fraction = 0.3
    min_score: float = -1.5
    max_per_class: PositiveInt = 100
    svd: Annotated[
        Annotated[list[PositiveInt], Field(min_length=1, max_length=2)] | None,
        BeforeValidator(none_of),
    ] = None
    """Ranks that fc6 and fc7 are truncated to, such as [1024, 256]: faster, a little less exact (Girshick
    2015, Fast R-CNN); none: whole."""


class EvalConfig(Section):
    """The default metric."""

    metric: Literal["voc07", "voc10", "coco"] = "voc07"


class Config(Section):
    """All settings of a run."""

    data: DataConfig
    proposals: ProposalsConfig = ProposalsConfig()
    backbone: BackboneConfig = BackboneConfig()
    scales: Annotated[list[PositiveInt], Field(min_length=1), AfterValidator(_ascending)] = [
        480,
        576,
        688,
        864,
        1200,
    ]
    """Shorter sides of the resized pictures, in pixels."""
    spp_levels: SppLevels = [6, 3, 2, 1]
    """Bins a side."""
    features: FeaturesConfig = FeaturesConfig()
    head: Annotated[HeadConfig | None, BeforeValidator(none_of)] = HeadConfig()
    finetune: Annotated[FinetuneConfig | None, BeforeValidator(none_of)] = FinetuneConfig()
    svm: SvmConfig = SvmConfig()
    bbox: Annotated[BboxConfig | None, BeforeValidator(none_of)] = BboxConfig()
    detect: DetectConfig = DetectConfig()
    eval: EvalConfig = EvalConfig()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    workers: Literal["auto"] | PositiveInt = "auto"
    """Threads that decode pictures and search for proposals; auto: one per core."""
    checkpoint_minutes: Annotated[float, Field(ge=0.0)] = 5.0
    """How much of a stage an interruption may cost; 0: as little as possible."""
    store: Path | None = None
    """Folder of proposals and feature maps; runs that name the same one share them."""

    @model_validator(mode="after")
    def _layers_exist(self) -> Config:
        layers = self.layers()
        wanted = {"svm.layer": self.svm.layer}
        if self.bbox is not None:
            wanted["bbox.layer"] = self.bbox.layer
        for key, layer in wanted.items():
            if layer not in (*layers, "auto"):
                raise ValueError(f"{key}: {layer} needs a head; there is {', '.join(layers)}")
        return self

    def layers(self) -> list[Layer]:
        """The layers whose features exist, in order."""
        fc: list[Layer] = ["fc6", "fc7"]
        return ["pool5", *fc[: len(self.head.widths) if self.head else 0]]

    def svm_layer(self) -> Layer:
        """`svm.layer`, with auto resolved."""
        return self.layers()[-1] if self.svm.layer == "auto" else self.svm.layer

    def to_yaml(self) -> str:
        """The settings with every default, `svm.layer` resolved, and finetune: none without a head.

        Reading them again gives a Config that equals this one but for what was resolved.
        """
        raw = self.model_dump(mode="json")
        for key in ("head", "finetune", "bbox"):
            raw[key] = raw[key] or "none"
        if self.head is None:
            raw["finetune"] = "none"
        raw["svm"]["layer"] = self.svm_layer()
        return plain_yaml.dump(raw)


def worker_count(workers: Literal["auto"] | int) -> int:
    """The setting `workers`, with auto resolved."""
    return available_cores() if workers == "auto" else workers


def available_cores() -> int:
    """Cores this process may use; those that `torchrun` starts on one machine share them."""
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return max(1, cores // local_processes())


def local_processes() -> int:
    """Processes that train together on this machine, as `torchrun` tells."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
