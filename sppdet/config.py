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
    Section,
    Side,
    SppLevels,
    Width,
    Workers,
    as_list,
    ascending,
    interval,
    none_of,
)

Layer = Literal["pool5", "fc6", "fc7"]


class ProposalsConfig(Section):
    """Class-agnostic candidate boxes: selective search, or boxes computed elsewhere."""

    engine: Literal["sppdet", "opencv", "stored"] = "sppdet"
    """Source of the proposals. sppdet: its own selective search; opencv: OpenCV's, slower, for
    comparison; stored: read them from `path`."""
    mode: Literal["fast", "quality"] = "fast"
    """Number of hierarchies that selective search builds. fast: 8, about 2,000 boxes per image; quality:
    80, more boxes and higher recall, but many times slower."""
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

    @model_validator(mode="after")
    def _stored_has_path(self) -> ProposalsConfig:
        if (self.engine == "stored") != (self.path is not None):
            raise ValueError("path: expected with engine: stored, and only there")
        return self


class BackboneConfig(Section):
    """Convolutional layers."""

    name: str = "alexnet"
    """Convolutional network: zf5 (the paper's), zf5_detector, convnet5, overfeat5, overfeat7, tiny, or a
    convolutional network of torchvision (alexnet, vgg16, squeezenet1_1, resnet50, ...)."""
    weights: str = "imagenet"
    """Weights of the network. imagenet: torchvision's, downloaded on first use; none: random; or the path
    of a `.safetensors` or `.pth` file or of a classifier's run (`sppdet pretrain`)."""


class FeaturesConfig(Section):
    """Feature maps and the choice of an image scale for each window."""

    store: Literal["auto", "overflow"] | bool = "auto"
    """Feature maps of training images to write to disk, as float16. true: all; false: none, they are
    recomputed when needed; overflow: those that don't fit in the GPU's memory; auto: overflow on one
    GPU, true otherwise. Choose false when disk space is short."""
    canonical_size: Side = 224
    """Side in pixels of the window that the scales are chosen for: each window is pooled at the image
    scale that brings its area nearest to the square of this. 224 is the input size of ImageNet
    classifiers."""
    max_side: Side = 2400
    """Maximum longer side of a resized image, in pixels; bounds the memory for panoramas (not in the
    paper). Scales that coincide under it count once."""
    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Floating-point type of the networks, fine-tuning excepted. auto: float16 on a GPU, float32 on a
    CPU."""


class HeadConfig(Section):
    """Fully connected layers fc6 and fc7 (one width: fc6 alone)."""

    widths: Annotated[list[Width], Field(min_length=1, max_length=2)] = [4096, 4096]
    """Widths of the fully connected layers: two for fc6 and fc7, one for fc6 alone. Pre-trained layers
    are used if they have these widths."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Dropout probability after each fully connected layer during training."""


class FinetuneConfig(Section):
    """Fine-tuning of the fully connected layers."""

    batches: Count = 300_000
    """Number of training batches. The default suits PASCAL VOC; a thousand to a few thousand suit small
    sets."""
    batch_size: Count = 128
    """Windows per batch."""
    positive_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.25
    """Fraction of positives in each batch."""
    positive_iou: Fraction = 0.5
    """Minimum IoU with a ground truth at which a proposal is a positive of its class."""
    negative_iou: Annotated[
        list[Fraction], Field(min_length=2, max_length=2), AfterValidator(interval)
    ] = [0.1, 0.5]
    """Interval [low, high) of the maximum IoU with any ground truth in which a proposal is a negative."""
    lr: PositiveFloat = 1e-4
    """Initial learning rate. The default suits a pre-trained head; 3e-3 suits one that starts at
    random."""
    drop_after: Fraction = 5 / 6
    """Fraction of the batches after which the learning rate is divided by 10 (paper: 250k of 300k)."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 5e-4
    """Weight decay (L2 penalty) of SGD."""
    flip: bool = True
    """Mirror images horizontally with probability 0.5. Mirrored feature maps double the time and the disk
    space of the features stage."""
    scale: Literal["best", "random"] = "best"
    """Image scale at which training windows are pooled. best: the scale that detection uses, see
    `features.canonical_size`; random: a scale drawn for each window."""
    val_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Fraction of the training images held out to choose the best snapshot (not in the paper). 0, or
    fewer than 5 images: train on all and keep the last snapshot."""
    snapshots: Count = 20
    """Number of snapshots to compare, evenly spaced over the batches."""
    mixed_precision: bool = True
    """Compute in bfloat16 on GPUs that support it (not in the paper). false: float32 throughout."""
    pool_images: Count = 32
    """Number of images whose windows are pooled and shuffled together (not in the paper). More mix the
    batches better and take more memory."""
    pool_windows: Count = 64
    """Maximum number of windows drawn from each of these images (not in the paper)."""


class SvmConfig(Section):
    """One linear SVM per class, with hard-negative mining."""

    layer: Literal["auto", "pool5", "fc6", "fc7"] = "auto"
    """Layer whose features are classified: pool5, fc6 or fc7. auto: the last layer, which is fc7 with the
    default head and pool5 with head: none."""
    C: PositiveFloat = 1e-3
    """Cost of the hinge loss. Higher values fit the training set more closely."""
    positive_weight: PositiveFloat = 2.0
    """Factor on the cost of positives."""
    bias: PositiveFloat = 10.0
    """Value of the constant feature whose weight is the bias. Higher values regularise the bias less."""
    target_norm: PositiveFloat = 20.0
    """Mean norm to which features are scaled before training. C and the ridge of box regression apply to
    scaled features."""
    norm_images: Count = 200
    """Number of training images on which the mean norm is estimated."""
    norm_windows: Count = 200
    """Maximum number of windows per image on which the mean norm is estimated."""
    negative_iou: Fraction = 0.3
    """A proposal is a negative of a class if its IoU with every ground truth of the class is below
    this."""
    negative_nms: Fraction = 0.7
    """IoU with an earlier negative of the same image above which a negative is dropped before mining. 1:
    keep all."""
    hard_threshold: float = -1.0001
    """Score above which a negative is hard and joins the cache of its class. Negatives on the margin score
    -1."""
    evict_threshold: float = -1.2
    """Score below which cached negatives are dropped when their class is retrained."""
    retrain_after: Count = 2000
    """Number of new hard negatives after which a class is retrained."""
    passes: Count = 1
    """Number of passes over the training images in search of hard negatives."""
    solver: Literal["dual", "liblinear"] = "dual"
    """Solver of the SVMs. dual: dual coordinate descent for all due classes at once, on CPU or GPU;
    liblinear: the reference implementation, slower."""
    tolerance: PositiveFloat = 1e-3
    """Stopping tolerance. dual: duality gap relative to the objective; liblinear: its own criterion."""
    max_iterations: Count = 2000
    """Maximum number of passes over the examples of a class (dual: over its working set). A class that
    reaches it is reported."""


class BboxConfig(Section):
    """Ridge regression of box deltas, per class."""

    layer: Layer = "pool5"
    """Layer whose features predict the box deltas: pool5, fc6 or fc7."""
    ridge: PositiveFloat = 1000.0
    """Regularisation strength λ for features of mean norm `svm.target_norm` (R-CNN's value; the released
    SPP-net has 4000)."""
    min_iou: Fraction = 0.5
    """Minimum IoU of a training proposal with its nearest ground truth."""
    whiten_epsilon: PositiveFloat = 1e-3
    """Constant added to the eigenvalues of the covariance when targets are whitened."""
    max_examples: Count = 10_000
    """Maximum number of training examples per class, drawn at random (not in the paper); bounds the
    memory."""


class DetectConfig(Section):
    """Post-processing of scores into detections, for the evaluation and `sppdet detect`."""

    nms: Fraction = 0.3
    """IoU above which a detection suppresses those of lower score in the same class and image."""
    min_score: float = -1.5
    """Minimum score (SVM margin) of a detection. Low values complete the precision-recall curve; `detect
    --score` raises it for one call."""
    max_per_class: Count = 100
    """Maximum number of detections per class and image."""
    soft_nms: PositiveFloat | None = None
    """Sigma of Gaussian soft-NMS, which lowers the scores of neighbours where NMS drops them (Bodla et al.
    2017; their value is 0.5). Larger lowers less. `nms` has no effect then. null: NMS."""
    box_voting: Fraction | None = None
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


class EvalConfig(Section):
    """Metric of the evaluation."""

    metric: Literal["voc07", "voc10", "coco"] = "voc07"
    """Metric of the evaluation. voc07: 11-point AP; voc10: area under the monotone precision-recall
    curve; coco: AP averaged over IoU 0.5 to 0.95."""


class Config(Section):
    """All settings of a run."""

    data: DataConfig
    proposals: ProposalsConfig = ProposalsConfig()
    backbone: BackboneConfig = BackboneConfig()
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
    svm: SvmConfig = SvmConfig()
    bbox: Annotated[BboxConfig | None, BeforeValidator(none_of)] = BboxConfig()
    """Box regression. none: detections keep the boxes of their proposals."""
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
        return self

    def layers(self) -> list[Layer]:
        """List the layers that have features, in order."""
        fc: list[Layer] = ["fc6", "fc7"]
        return ["pool5", *fc[: len(self.head.widths) if self.head else 0]]

    def svm_layer(self) -> Layer:
        """Resolve `svm.layer`."""
        return self.layers()[-1] if self.svm.layer == "auto" else self.svm.layer

    def to_plain(self) -> dict[str, Any]:
        """Convert to plain data with every default.

        `svm.layer` is resolved, and without a head fine-tuning is "none"; otherwise a Config built
        from the result equals this one.
        """
        raw = self.model_dump(mode="json")
        for key in ("head", "finetune", "bbox"):
            raw[key] = raw[key] or "none"
        if self.head is None:
            raw["finetune"] = "none"
        raw["svm"]["layer"] = self.svm_layer()
        return raw
