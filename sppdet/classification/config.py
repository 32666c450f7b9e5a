"""The settings of a classifier's training and of a linear probe of its features.

Every default is the paper's value (He et al., arXiv 1406.4729v4, section 3) unless its line says
otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, model_validator

from sppdet.config import BackboneConfig
from sppdet.errors import ArtifactError, ConfigError
from sppdet.io.settings import read_run_settings
from sppdet.setting_types import (
    MAX_PIXELS,
    Count,
    Fraction,
    Section,
    Side,
    SppLevels,
    Workers,
    none_of,
)
from sppdet.training_config import HeadConfig

ViewSet = Literal["centre", "10", "full", "maps10", "maps96", "maps98"]


class FolderConfig(Section):
    """Images in folders named by class (the layout of ImageNet and of torchvision's ImageFolder)."""

    root: Path
    """Folder of the data set."""
    train: str = "train"
    """Folder of the training images, below `root`; its subfolders are the classes. `.`: `root` itself."""
    val: str | None = "val"
    """Folder of the validation images, below `root`. The same folder as `train`: both sets are drawn from
    it without overlap; null: no validation."""
    train_per_class: Count | None = None
    """Maximum number of training images per class, drawn at random. null: all."""
    val_per_class: Count | None = None
    """Maximum number of validation images per class, drawn at random. null: all."""
    split_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the draws of training and validation images; separate from `seed`, so that runs can share
    the split."""
    on_error: Literal["stop", "skip"] = "stop"
    """Handling of an image that can't be decoded. stop: end with an error; skip: leave it out and list
    it."""
    max_pixels: Count = MAX_PIXELS
    """Maximum number of pixels of an image; a larger one is refused before it is decoded. Each of the
    `workers` needs up to 6 bytes of memory per pixel."""

    @model_validator(mode="after")
    def _both_from_one_folder(self) -> FolderConfig:
        if self.train == self.val and self.train_per_class is None:
            raise ValueError("train_per_class: expected where train and val are the same folder")
        return self


class AugmentConfig(Section):
    """Augmentation of training images."""

    resize: Side = 256
    """Shorter side of the resized image, in pixels, before cropping."""
    crop: Side = 224
    """Side of the square crop, in pixels of the resized image."""
    crop_choice: Literal["random", "five"] = "random"
    """Position of the crop. random: anywhere; five: the centre or one of the corners, as in the paper."""
    flip: bool = True
    """Mirror crops horizontally with probability 0.5."""
    colour: Annotated[float, Field(ge=0.0)] = 0.1
    """Standard deviation of the random shift along the principal components of ImageNet's colours
    (Krizhevsky 2012). 0: no shift."""

    @model_validator(mode="after")
    def _crop_fits(self) -> AugmentConfig:
        if self.crop > self.resize:
            raise ValueError(f"crop: {self.crop} is more than resize {self.resize}")
        return self


class TrainConfig(Section):
    """Stochastic gradient descent on crops."""

    sizes: Annotated[list[Side], Field(min_length=1)] = [224]
    """Sides to which crops are resized for training, in pixels. The paper's two sizes: [224, 180]."""
    size_choice: Literal["turns", "range"] = "turns"
    """Choice of the size of each epoch. turns: the sizes in turn; range: a side drawn between the
    smallest and the largest."""
    epochs: Count = 80
    """Number of passes over the training images."""
    batch_size: Count = 128
    """Images per batch, over all processes."""
    lr: PositiveFloat = 0.01
    """Initial learning rate."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 5e-4
    """Weight decay (L2 penalty) of SGD."""
    schedule: Literal["step", "plateau"] = "plateau"
    """When to divide the learning rate by 10. step: after the fractions of the epochs in `steps`;
    plateau: when the validation error hasn't decreased for `patience` epochs, up to `drops` times."""
    steps: list[Fraction] = [0.5, 0.8]
    """With schedule: step, the fractions of the epochs after which the learning rate is divided by 10."""
    patience: Count = 5
    """With schedule: plateau, the number of epochs to wait for a lower validation error."""
    drops: Count = 2
    """With schedule: plateau, the maximum number of divisions of the learning rate."""
    mixed_precision: bool = True
    """Compute in bfloat16 on GPUs that support it. false: float32 throughout."""


class TestConfig(Section):
    """Views of an image whose scores are averaged when a classifier is tested."""

    views: list[ViewSet] = ["centre", "full"]
    """Sets of views to test. centre: the centre crop; 10: centre and corner crops and their mirror
    images; full: the whole image and its mirror image; maps10, maps96, maps98: the paper's views, pooled
    from the feature maps of whole images."""
    side: Side = 256
    """Shorter side of the resized image, in pixels, for centre, 10, full and maps10."""
    crop: Side = 224
    """Side of a view, in pixels of the resized image."""
    size: Side | None = None
    """Side to which crops are resized before the network, in pixels, for centre and 10. null: they keep
    the size `crop`."""

    @model_validator(mode="after")
    def _crop_fits(self) -> TestConfig:
        if self.crop > self.side and set(self.views) & {"centre", "10", "maps10"}:
            raise ValueError(f"crop: {self.crop} is more than side {self.side}")
        return self


class PretrainConfig(Section):
    """All settings of the training of a classifier."""

    data: FolderConfig
    backbone: BackboneConfig = BackboneConfig(name="zf5", weights="none")
    spp_levels: SppLevels = [6, 3, 2, 1]
    """SPP levels: bins per side of each level of the spatial pyramid. [6] is the network without SPP: at
    224 pixels its bins are those of pool5."""
    head: Annotated[HeadConfig | None, BeforeValidator(none_of)] = HeadConfig()
    """Fully connected layers. none: one linear layer on the pooled features."""
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    test: TestConfig = TestConfig()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of all random numbers of training: initial weights, order, augmentation, dropout."""
    workers: Literal["auto"] | Workers = "auto"
    """Number of threads that decode images. auto: one per core. Results don't depend on it."""
    checkpoint_minutes: Annotated[float, Field(ge=0.0)] = 5.0
    """Minutes between checkpoints within an epoch; each epoch ends with one. 0: as often as possible."""
    tensorboard: bool = False
    """Write curves for TensorBoard, too (needs `pip install tensorboard`)."""

    def to_plain(self) -> dict[str, Any]:
        """Convert the settings to plain data with every default."""
        raw = self.model_dump(mode="json")
        raw["head"] = raw["head"] or "none"
        return raw


class ProbeDataConfig(Section):
    """A data set for classification: folders named by class, or VOC's image sets."""

    format: Literal["folder", "voc"] = "folder"
    """Layout of the data set. folder: subfolders named by class; voc: VOC's image sets, one SVM per class
    against all images without it."""
    root: Path
    """Folder of the data set."""
    train: str = "."
    """Training set. folder: folder below `root` whose subfolders are the classes (`.`: `root` itself);
    voc: name of an image set."""
    test: str = "."
    """Test set, named like `train`. The same folder as `train`: both sets are drawn from it without
    overlap."""
    train_per_class: Count | None = 30
    """With format: folder, the number of training images per class. null: all, with `test` in another
    folder."""
    test_per_class: Count | None = 50
    """With format: folder, the maximum number of test images per class. null: all."""
    max_pixels: Count = MAX_PIXELS
    """Maximum number of pixels of an image; a larger one is refused before it is decoded. Each of the
    `workers` needs up to 6 bytes of memory per pixel."""


class ProbeConfig(Section):
    """All settings of a linear probe: features of whole images, one linear SVM per class."""

    data: ProbeDataConfig
    backbone: BackboneConfig = BackboneConfig()
    spp_levels: SppLevels = [6, 3, 2, 1]
    """SPP levels: bins per side of each level of the spatial pyramid."""
    head: Annotated[HeadConfig | None, BeforeValidator(none_of)] = None
    """Fully connected layers, for layer: fc6 and fc7; their widths must be those of the weights. none: no
    such layers."""
    layer: Literal["conv", "spp", "fc6", "fc7"] = "spp"
    """Features to classify. conv: the last convolutional map, flattened; spp: the pyramid on it; fc6,
    fc7: pre-trained fully connected layers."""
    image: Literal["full", "crop", "warp"] = "full"
    """Input of the network. full: the whole image, resized; crop: its centre square; warp: the whole
    image squeezed into a square."""
    side: Side = 224
    """Shorter side of the resized image, and the side of the square of crop and warp, in pixels."""
    C: PositiveFloat = 1.0
    """Cost of the hinge loss of the SVMs, on features of length 1 (the paper doesn't state it)."""
    splits: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = list(range(10))
    """With format: folder, the seeds of the random splits over which the accuracy is averaged."""
    workers: Literal["auto"] | Workers = "auto"
    """Number of threads that decode images. auto: one per core. Results don't depend on it."""


def read_classifier_config(run: Path) -> PretrainConfig:
    """Read the settings of a classifier's run.

    Raises:
        ArtifactError: not a run, or not that of a classifier.
    """
    try:
        return read_run_settings(run, PretrainConfig)
    except ConfigError as error:
        raise ArtifactError(f"{run}: not the run of a classifier: {error}") from None
