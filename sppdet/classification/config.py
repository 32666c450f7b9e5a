"""The settings of a classifier's training and of a linear probe of its features.

Every default is the paper's value (He et al., arXiv 1406.4729v4, section 3) unless its line says
otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from sppdet import plain_yaml
from sppdet.config import (
    BackboneConfig,
    Fraction,
    HeadConfig,
    Section,
    SppLevels,
    none_of,
)

ViewSet = Literal["centre", "10", "full", "maps10", "maps96", "maps98"]


class FolderConfig(Section):
    """Pictures in folders named by their class (the layout of ImageNet and of ImageFolder)."""

    root: Path
    train: str = "train"
    """Folder below `root` whose folders are the classes; `.` is `root` itself."""
    val: str | None = "val"
    """Likewise; the same folder as `train`: both are drawn from it; null: no validation."""
    train_per_class: PositiveInt | None = None
    """Pictures of a class at most, drawn at random from `split_seed`; null: all."""
    val_per_class: PositiveInt | None = None
    split_seed: Annotated[int, Field(ge=0)] = 0
    on_error: Literal["stop", "skip"] = "stop"

    @model_validator(mode="after")
    def _both_from_one_folder(self) -> FolderConfig:
        if self.train == self.val and self.train_per_class is None:
            raise ValueError("train_per_class: expected where train and val are the same folder")
        return self


class AugmentConfig(Section):
    """What a training picture goes through."""

    resize: PositiveInt = 256
    """Shorter side of the resized picture, in pixels."""
    crop: PositiveInt = 224
    """Side of the square cut from it."""
    crop_choice: Literal["random", "five"] = "random"
    """random: anywhere; five: the centre or a corner, as in the paper."""
    flip: bool = True
    colour: Annotated[float, Field(ge=0.0)] = 0.1
    """Deviation of the change of colours along ImageNet's principal components (Krizhevsky 2012)."""

    @model_validator(mode="after")
    def _crop_fits(self) -> AugmentConfig:
        if self.crop > self.resize:
            raise ValueError(f"crop: {self.crop} is more than resize {self.resize}")
        return self


class TrainConfig(Section):
    """Stochastic gradient descent on crops."""

    sizes: Annotated[list[PositiveInt], Field(min_length=1)] = [224]
    """Sides that the crop is resized to, in pixels; the paper's two: [224, 180]."""
    size_choice: Literal["turns", "range"] = "turns"
    """turns: an epoch each in turn; range: an epoch's size is drawn between the least and greatest."""
    epochs: PositiveInt = 80
    batch_size: PositiveInt = 128
    """Over all processes."""
    lr: PositiveFloat = 0.01
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    weight_decay: Annotated[float, Field(ge=0.0)] = 5e-4
    schedule: Literal["step", "plateau"] = "plateau"
    """When the learning rate is divided by 10: after the parts of the epochs in `steps`, or when the
    validation error hasn't fallen for `patience` epochs (at most `drops` times)."""
    steps: list[Fraction] = [0.5, 0.8]
    patience: PositiveInt = 5
    drops: PositiveInt = 2
    mixed_precision: bool = True
    """bfloat16 on GPUs that have it."""


class TestConfig(Section):
    """How a trained classifier is tested."""

    views: list[ViewSet] = ["centre", "full"]
    """centre: one crop; 10: crops of the centre and corners, and mirrored; full: the whole picture and
    its mirror image; maps10, maps96, maps98: the paper's views, pooled from the maps of whole pictures."""
    side: PositiveInt = 256
    """Shorter side of the resized picture for centre, 10, full and maps10."""
    crop: PositiveInt = 224
    """Side of a view, in resized pixels."""
    size: PositiveInt | None = None
    """Side that a crop is resized to, for centre and 10; null: it stays as it is cut."""

    @model_validator(mode="after")
    def _crop_fits(self) -> TestConfig:
        if self.crop > self.side and set(self.views) & {"centre", "10", "maps10"}:
            raise ValueError(f"crop: {self.crop} is more than side {self.side}")
        return self


class PretrainConfig(Section):
    """All settings of a classifier's training."""

    data: FolderConfig
    backbone: BackboneConfig = BackboneConfig(name="zf5", weights="none")
    spp_levels: SppLevels = [6, 3, 2, 1]
    """Bins a side; [6] is the paper's net without SPP: at 224 pixels its bins are those of pool5."""
    head: Annotated[HeadConfig | None, BeforeValidator(none_of)] = HeadConfig()
    """none: one linear layer on the pooled vectors."""
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    test: TestConfig = TestConfig()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    workers: Literal["auto"] | PositiveInt = "auto"
    """Threads that decode pictures; auto: one per core."""
    checkpoint_minutes: Annotated[float, Field(ge=0.0)] = 5.0
    """How much an interruption may cost; also saved after every epoch."""
    tensorboard: bool = False
    """Write curves for TensorBoard too (pip install tensorboard)."""

    def to_yaml(self) -> str:
        """The settings with every default."""
        raw = self.model_dump(mode="json")
        raw["head"] = raw["head"] or "none"
        return plain_yaml.dump(raw)


class ProbeDataConfig(Section):
    """A set for classification: folders named by class, or VOC's image sets."""

    format: Literal["folder", "voc"] = "folder"
    root: Path
    train: str = "."
    """folder: the folder whose folders are the classes; voc: the image set."""
    test: str = "."
    train_per_class: PositiveInt | None = 30
    """folder: pictures of a class to train on."""
    test_per_class: PositiveInt | None = 50
    """folder: pictures of a class to test on, at most."""


class ProbeConfig(Section):
    """All settings of a linear probe: features of pictures, one linear SVM a class."""

    data: ProbeDataConfig
    backbone: BackboneConfig = BackboneConfig()
    spp_levels: SppLevels = [6, 3, 2, 1]
    head: Annotated[HeadConfig | None, BeforeValidator(none_of)] = None
    """For the layers fc6 and fc7, which must come with the weights."""
    layer: Literal["conv", "spp", "fc6", "fc7"] = "spp"
    picture: Literal["full", "crop", "warp"] = "full"
    """full: the whole picture; crop: its centre; warp: the whole, squeezed into a square."""
    side: PositiveInt = 224
    """Shorter side of the resized picture, and the side of crop and warp."""
    C: PositiveFloat = 1.0
    """Of the SVMs, on features of length 1 (ours; the paper doesn't say)."""
    splits: Annotated[list[int], Field(min_length=1)] = list(range(10))
    """folder: the seeds of random splits."""
    workers: Literal["auto"] | PositiveInt = "auto"
