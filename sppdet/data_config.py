"""The data section of a detector's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from sppdet.errors import ConfigError
from sppdet.setting_types import MAX_PIXELS, ClassName, Count, Section, as_list

Format = Literal["auto", "voc", "coco", "xml", "yolo", "labelme", "csv", "via", "cvat"]


def _test_of(value: Any) -> Any:
    """Make a list of a set's name; ValueError for a number that is no fraction."""
    if isinstance(value, int | float) and not (0 < value < 1):
        raise ValueError("should be a fraction between 0 and 1, the name of a set, or null")
    return value if not value or isinstance(value, float) else as_list(value)


class DataConfig(Section):
    """Images and annotations."""

    format: Format = "voc"
    """Layout of the data set. voc: `Annotations`, `ImageSets/Main` and `JPEGImages`; coco: JSON files in
    the format of COCO's instances; xml: VOC's annotations without its folders; yolo, labelme, csv, via,
    cvat: as these tools write them, csv like RetinaNet's; auto: whichever of these is found, with its
    sets."""
    root: Annotated[list[Path], BeforeValidator(as_list), Field(min_length=1)]
    """Folder of the data set, or a list of folders that are used together (such as VOC2007 and
    VOC2012)."""
    images: Path | None = None
    """Folder of the images. null: the layout's own, `JPEGImages` for VOC, `root` for COCO."""
    train: Annotated[list[str | None] | None, BeforeValidator(lambda v: v and as_list(v))] = None
    """Training set: name of an image set (VOC), annotation file (COCO, csv, via, cvat), key of data.yaml
    (YOLO) or of a folder that the images or annotations are in (xml, labelme, YOLO); `all` is everything. A
    list names one for each root; null leaves out that root. Required for training with voc and coco;
    otherwise null takes the set that is found."""
    test: Annotated[float | list[str | None] | None, BeforeValidator(_test_of)] = None
    """Test set, named like `train`; or the fraction of the training set's images to test with instead,
    such as 0.2: drawn once for a run, by `seed`, with the classes in proportion, similar images and the
    frames of a video on the same side. null: no test set, training ends without a metric. Not given: null
    for voc and coco; otherwise the set that is found beside the one to train on, or 0.2."""
    train_ids: Path | None = None
    """Text file of image ids, one a line: the images of the training set to use. An image's id is the name
    of its file without the suffix, where these names differ. null: all."""
    test_ids: Path | None = None
    """Text file of image ids, one a line: the images of the test set to use. null: all."""
    classes: Literal["auto"] | Annotated[list[ClassName], Field(min_length=1)] = "auto"
    """Class names, in the order of their labels. Objects of other classes are ignored. auto: all classes
    of the training annotations, sorted by name."""
    on_error: Literal["stop", "skip"] = "stop"
    """Handling of an image that can't be decoded and of an invalid annotation. stop: end with an error;
    skip: leave it out and list it."""
    repair_sizes: bool = False
    """Whether to move boxes into the image where an annotation states another size than the image has and
    the cause is certain: sides swapped by an EXIF rotation, or both sides scaled by one factor. false:
    boxes are taken as they are, and such images are counted in a warning."""
    max_pixels: Count = MAX_PIXELS
    """Maximum number of pixels of an image; a larger one is refused before it is decoded. Each of the
    `workers` needs up to 6 bytes of memory per pixel."""

    @model_validator(mode="after")
    def _sets_match_roots(self) -> DataConfig:
        for key, sets in (("train", self.train), ("test", self.test)):
            if isinstance(sets, list) and len(sets) not in (1, len(self.root)):
                raise ValueError(f"{key} names {len(sets)} sets for {len(self.root)} roots")
        if self.classes != "auto" and len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: a name is repeated")
        return self

    def is_open(self) -> bool:
        """Check whether sets must be found or made first; see `sppdet.stages.settle`."""
        found = self.format not in ("voc", "coco") and self.train is None
        return self.format == "auto" or found or isinstance(self.test, float)

    def sets_of(self, split: str) -> list[str | None]:
        """List one set name per root: those of train or test, or `split` itself as the name of a set."""
        test = None if isinstance(self.test, float) else self.test
        names = {"train": self.train, "test": test}.get(split, [split])
        if isinstance(self.test, float) and split == "test":
            raise ConfigError(
                f"data.test: {self.test:g} is a part of the training set that a run has drawn; expected "
                "the config.yaml of the run"
            )
        if names is None:
            purpose = "train on" if split == "train" else "evaluate on"
            raise ConfigError(f"data.{split}: no set is named; expected one to {purpose}")
        return names if len(names) == len(self.root) else names * len(self.root)
