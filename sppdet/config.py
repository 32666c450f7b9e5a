"""Settings of a run: one YAML file, validated against the types below.

Every default is the paper's value (He et al., arXiv 1406.4729v4) unless its line says otherwise.
A stage gets its own section only. `sppdet.io.settings` reads the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, model_validator

from sppdet.data_config import DataConfig
from sppdet.setting_types import (
    Count,
    Fraction,
    PositiveFraction,
    Section,
    Side,
    SppLevels,
    Workers,
    as_list,
    ascending,
    none_of,
)
from sppdet.training_config import (
    BboxConfig,
    CalibrateConfig,
    FinetuneConfig,
    HeadConfig,
    Layer,
    SvmConfig,
)

Classifier = Literal["svm", "softmax"]
Engine = Literal["sppdet", "opencv", "edgeboxes", "stored"]
SearchMode = Literal["single", "fast", "diverse", "quality"]
# OpenCV's table of sizes of edge boxes ends at (width + height) / 2 = 10,000, and a searched image is at
# most 4 times as high as wide
MAX_EDGES_WIDTH = 4000


def _one_of_one(value: Any) -> Any:
    """Take a list of one as what is in it, so that both have the same proposals and fingerprints."""
    if value == []:
        raise ValueError("expected an engine, or a list of engines")
    is_one = isinstance(value, list) and len(value) == 1 and isinstance(value[0], str)
    return value[0] if is_one else value


class ProposalsConfig(Section):
    """Class-agnostic candidate boxes: selective search, edge boxes, or boxes computed elsewhere."""

    engine: Annotated[
        Engine | Annotated[list[Engine], Field(min_length=2)], BeforeValidator(_one_of_one)
    ] = "sppdet"
    """Source of the proposals. sppdet: its own selective search; opencv: OpenCV's, slower, for
    comparison; edgeboxes: windows scored by the contours in them; stored: read them from `path`. A list
    such as [sppdet, edgeboxes] joins the boxes of several, in turn by rank, up to `max_boxes`."""
    mode: SearchMode = "fast"
    """Number of hierarchies that selective search builds. single: 2 of one segmentation, about 700 boxes
    per image and lower recall; fast: 8 of four segmentations, about 2,000 boxes per image; diverse: 20 of
    five, one in every colour space, as many boxes as fast in 1.2 to 1.4 times the time; quality: 80, as
    many boxes as `max_boxes` allows, in about four times the time."""
    max_boxes: Count = 2000
    """Maximum number of proposals per image. More raise recall; training and detection take
    proportionally longer."""
    min_size: Count = 20
    """Minimum width and height of a proposal, in pixels of the image resized to `image_width`. Lower it
    for small objects."""
    image_width: Side = 500
    """Width in pixels to which images are resized for the search. Boxes are mapped back to the original
    image. Raise it for small objects in large images."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the pseudo-random ranking of proposals; separate from `seed`, so that runs can share
    proposals."""
    path: Annotated[
        list[Path] | None, BeforeValidator(lambda v: v if v is None else as_list(v))
    ] = None
    """With engine: stored, a `.mat` or `.npz` file of boxes, a folder of such files, or a list of
    both."""
    edge_model: Path | None = None
    """With engine: edgeboxes, the file of a trained detector of structured edges in OpenCV's format
    (`model.yml.gz`). null: edges are gradients of colour, which need no model."""

    @model_validator(mode="after")
    def _engines_have_their_settings(self) -> ProposalsConfig:
        engines = self.engines()
        if "stored" in engines and isinstance(self.engine, list):
            raise ValueError("engine: stored proposals stand alone, expected a list without stored")
        if len(engines) != len(set(engines)):
            raise ValueError("engine: expected every engine once")
        if ("stored" in engines) != (self.path is not None):
            raise ValueError("path: expected with engine: stored, and only there")
        if "edgeboxes" not in engines and self.edge_model is not None:
            raise ValueError("edge_model: expected with engine: edgeboxes, and only there")
        if "edgeboxes" in engines and self.image_width > MAX_EDGES_WIDTH:
            raise ValueError(f"image_width: expected at most {MAX_EDGES_WIDTH} for edgeboxes")
        return self

    def engines(self) -> list[Engine]:
        """List the engines whose proposals are joined."""
        return self.engine if isinstance(self.engine, list) else [self.engine]


class BackboneConfig(Section):
    """Convolutional layers."""

    name: str = "alexnet"
    """Convolutional network: zf5 (the paper's), zf5_detector, convnet5, overfeat5, overfeat7, tiny, a
    convolutional network of torchvision (alexnet, vgg16, squeezenet1_1, resnet50, ...), or one of timm
    (timm/tf_efficientnet_lite0, timm/vit_small_patch14_dinov2, ...; needs `pip install 'sppdet[timm]'`; not
    for `sppdet pretrain`)."""
    weights: str = "imagenet"
    """Weights of the network. imagenet: torchvision's or those of timm's hub, downloaded on first use;
    none: random; or the path of a `.safetensors` or `.pth` file or of a classifier's run (`sppdet
    pretrain`)."""


class JoinedBackboneConfig(BackboneConfig):
    """Convolutional layers, and the maps of theirs that are pooled."""

    stages: (
        Literal["auto"] | Annotated[list[Count], Field(min_length=1), AfterValidator(ascending)]
    ) = "auto"
    """Strides of the feature maps to pool together, ascending, such as [16, 32]: the last map of each is
    brought to the cells of the first and scaled to the same mean square. auto: the last map of stride
    16 or less alone."""

    @property
    def strides(self) -> list[int] | None:
        """The strides of the maps to join; None: the last map alone."""
        return None if self.stages == "auto" else self.stages


class FeaturesConfig(Section):
    """Feature maps and the choice of an image scale for each window."""

    store: Literal["auto", "overflow"] | bool = "auto"
    """Feature maps of training images to write to disk. true: all; false: none, they are recomputed when
    needed; overflow: those that don't fit in the GPU's memory; auto: overflow on one GPU, true
    otherwise. Results don't depend on it."""
    max_disk: Annotated[Annotated[float, Field(ge=0.0)] | None, BeforeValidator(none_of)] = None
    """Maximum disk space of the feature maps in the store, in GB (10⁹ bytes), those by other settings
    included. Maps beyond it are recomputed when needed; none is removed. Results don't depend on it.
    null: no maximum."""
    rounding: Literal["float16", "int8"] = "float16"
    """Type that the values of feature maps are rounded to, in training and detection. int8: 256 levels per
    channel of a map, which halves the disk space; choose it for large sets and networks whose maps
    have few zeros."""
    canonical_size: Side = 224
    """Side in pixels of the window that the scales are chosen for: each window is pooled at the image
    scale that brings its area nearest to the square of this. 224 is the input size of ImageNet
    classifiers."""
    max_side: Side = 2400
    """Maximum longer side of a resized image, in pixels; bounds the memory for panoramas (not in the
    paper). Scales that coincide under it count once."""
    project: Annotated[Count | None, BeforeValidator(none_of)] = None
    """Number of channels to which feature maps are reduced, by the principal components of the training
    images' cells; makes vectors shorter and everything after the maps faster. null: all channels."""
    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Floating-point type of the networks, fine-tuning excepted. auto: float16 on a GPU, float32 on a
    CPU."""
    runtime: Literal["auto", "torch", "onnxruntime"] = "auto"
    """Library that runs the convolutional layers on a CPU in float32, fine-tuning excepted. onnxruntime
    takes half of torch's time; its maps are the same within rounding. auto: onnxruntime where it is
    installed (`pip install 'sppdet[onnx]'`) and gives the same maps, torch otherwise."""

    def that_matter(self) -> dict[str, Any]:
        """Return the settings that results depend on, as plain data, for fingerprints."""
        # runs before there was `rounding` rounded to float16; maps are the same by any runtime
        aside = {
            "store",
            "max_disk",
            "runtime",
            *(["rounding"] if self.rounding == "float16" else []),
        }
        return self.model_dump(mode="json", exclude=aside)


class DetectConfig(Section):
    """Post-processing of scores into detections, for the evaluation and `sppdet detect`."""

    nms: Fraction = 0.3
    """IoU above which a detection suppresses those of lower score in the same class and image."""
    min_score: Literal["auto"] | float = "auto"
    """Minimum score of a detection: the margin of an SVM, or the log odds with classifier: softmax. Low
    values complete the precision-recall curve; `detect --score` raises it for one call. auto: -1.5 for
    margins, -7 for log odds."""
    max_per_class: Count = 100
    """Maximum number of detections per class and image."""
    max_windows: Annotated[Count | None, BeforeValidator(none_of)] = None
    """Maximum number of windows per image that are pooled at all levels and scored: those that a ranking
    by the coarse levels, learned in training, puts first. Faster where windows cost much: with a large
    head or several scales. null: all windows."""
    soft_nms: Annotated[PositiveFloat | None, BeforeValidator(none_of)] = None
    """Sigma of Gaussian soft-NMS, which lowers the scores of neighbours where NMS drops them (Bodla et al.
    2017; their value is 0.5). Larger lowers less. `nms` has no effect then. null: NMS."""
    box_voting: Annotated[PositiveFraction | None, BeforeValidator(none_of)] = None
    """IoU from which the boxes of all scored proposals vote for a detection of their class: its box becomes
    their mean, weighted by score (Gidaris and Komodakis 2015; their value is 0.5). null: no voting."""
    flip: bool = False
    """Detect in the mirrored image as well and average scores and box deltas of each proposal. Doubles
    the time of the networks."""
    svd: Annotated[
        Annotated[list[Count], Field(min_length=1, max_length=2)] | None,
        BeforeValidator(none_of),
    ] = None
    """Ranks of a truncated SVD of fc6 and fc7, such as [1024, 256]; faster and slightly less accurate
    (Girshick 2015, Fast R-CNN). null: full matrices."""

    def lowest_score(self, classifier: Classifier) -> float:
        """Resolve `min_score` for the scores of a kind of classifier."""
        if self.min_score != "auto":
            return self.min_score
        return -7.0 if classifier == "softmax" else -1.5


class EvalConfig(Section):
    """Metric of the evaluation."""

    metric: Literal["voc07", "voc10", "coco"] = "voc07"
    """Metric of the evaluation. voc07: 11-point AP; voc10: area under the monotone precision-recall
    curve; coco: AP averaged over IoU 0.5 to 0.95."""


class Config(Section):
    """All settings of a run."""

    data: DataConfig
    proposals: ProposalsConfig = ProposalsConfig()
    backbone: JoinedBackboneConfig = JoinedBackboneConfig()
    scales: Annotated[list[Side], Field(min_length=1), AfterValidator(ascending)] = [
        480,
        576,
        688,
        864,
        1200,
    ]
    """Image scales: shorter sides of the resized images, in pixels, ascending. One scale, such as [688],
    is several times faster; in the paper it costs about one point of mAP."""
    spp_levels: SppLevels = [6, 3, 2, 1]
    """SPP levels: bins per side of each level of the spatial pyramid. [6, 3, 2, 1] has 50 bins. VGG-16
    takes [7, 3, 2, 1], so that its fc6 can be reused."""
    features: FeaturesConfig = FeaturesConfig()
    head: Annotated[HeadConfig | None, BeforeValidator(none_of)] = HeadConfig()
    """Fully connected layers fc6 and fc7. none: the SVMs are trained on pool5."""
    finetune: Annotated[FinetuneConfig | None, BeforeValidator(none_of)] = FinetuneConfig()
    """Fine-tuning of the head. none: the pre-trained head is used as it is."""
    classifier: Classifier = "svm"
    """Classifier that scores the windows. svm: one linear SVM per class, as in the paper; softmax: the
    fine-tuned network itself, by the log odds of its probabilities, as in Fast R-CNN; the settings of `svm`
    have no effect then."""
    svm: SvmConfig = SvmConfig()
    bbox: Annotated[BboxConfig | None, BeforeValidator(none_of)] = BboxConfig()
    """Box regression. none: detections keep the boxes of their proposals."""
    calibrate: Annotated[CalibrateConfig | None, BeforeValidator(none_of)] = CalibrateConfig()
    """Probabilities and thresholds of detections, fitted to the training images by cross-validation. none:
    detections have scores alone."""
    detect: DetectConfig = DetectConfig()
    eval: EvalConfig = EvalConfig()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of all random numbers of training. Runs with the same seed and settings give the same
    model."""
    workers: Literal["auto"] | Workers = "auto"
    """Number of threads that decode images and search for proposals. auto: one per core. Results don't
    depend on it."""
    checkpoint_minutes: Annotated[float, Field(ge=0.0)] = 5.0
    """Minutes between checkpoints: the work that an interruption may cost. 0: as often as possible."""
    store: Path | None = None
    """Folder of proposals and feature maps, which runs that name the same folder share. null: `store` in
    the run."""

    @model_validator(mode="after")
    def _layers_exist(self) -> Config:
        layers = self.layers()
        wanted = {"svm.layer": self.svm.layer}
        if self.bbox is not None:
            wanted["bbox.layer"] = self.bbox.layer
        for key, layer in wanted.items():
            if layer not in (*layers, "auto"):
                raise ValueError(f"{key}: {layer} needs a head; there is {', '.join(layers)}")
        if self.classifier == "softmax" and self.tuning() is None:
            raise ValueError("classifier: softmax needs a head and finetune settings")
        learned = self.bbox is not None and self.bbox.source == "finetune"
        if learned and not self.learns_boxes():
            raise ValueError("bbox.source: finetune needs a head and finetune.box_loss")
        return self

    def layers(self) -> list[Layer]:
        """List the layers that have features, in order."""
        fc: list[Layer] = ["fc6", "fc7"]
        return ["pool5", *fc[: len(self.head.widths) if self.head else 0]]

    def svm_layer(self) -> Layer:
        """Resolve the layer whose features are classified."""
        auto = self.svm.layer == "auto" or self.classifier == "softmax"
        return self.layers()[-1] if auto else self.svm.layer  # type: ignore[return-value]

    def bbox_layer(self) -> Layer | None:
        """Resolve the layer whose features predict box deltas; None without regression."""
        if self.bbox is None:
            return None
        return self.layers()[-1] if self.bbox.source == "finetune" else self.bbox.layer

    def tuning(self) -> FinetuneConfig | None:
        """Return the settings of fine-tuning; None where none is done, as without a head."""
        return self.finetune if self.head is not None else None

    def learns_boxes(self) -> bool:
        """Check whether fine-tuning trains a layer of box deltas beside the classes."""
        tuning = self.tuning()
        return tuning is not None and tuning.box_loss > 0

    def tunes_conv(self) -> bool:
        """Check whether fine-tuning changes the feature maps."""
        tuning = self.tuning()
        return tuning is not None and tuning.layers != "fc"

    def to_plain(self) -> dict[str, Any]:
        """Convert to plain data with every default.

        `svm.layer` is resolved, and without a head fine-tuning is "none"; otherwise a Config built
        from the result equals this one.
        """
        raw = self.model_dump(mode="json")
        for key in ("head", "finetune", "bbox", "calibrate"):
            raw[key] = raw[key] or "none"
        if self.head is None:
            raw["finetune"] = "none"
        raw["svm"]["layer"] = self.svm_layer()
        return raw
