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
Classifier = Literal["svm", "softmax"]
Engine = Literal["sppdet", "opencv", "edgeboxes", "stored"]
# OpenCV's table of sizes of edge boxes ends at (width + height) / 2 = 10,000, and a searched image is at
# most 4 times as high as wide
MAX_EDGES_WIDTH = 4000


class ProposalsConfig(Section):
    """Class-agnostic candidate boxes: selective search, edge boxes, or boxes computed elsewhere."""

    engine: Engine | Annotated[list[Engine], Field(min_length=2)] = "sppdet"
    """Source of the proposals. sppdet: its own selective search; opencv: OpenCV's, slower, for
    comparison; edgeboxes: windows scored by the contours in them; stored: read them from `path`. A list
    such as [sppdet, edgeboxes] joins the boxes of several, in turn by rank, up to `max_boxes`."""
    mode: Literal["single", "fast", "quality"] = "fast"
    """Number of hierarchies that selective search builds. single: 2 of one segmentation, about 700 boxes
    per image and lower recall; fast: 8, about 2,000 boxes per image; quality: 80, more boxes and higher
    recall, but many times slower."""
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
    project: Annotated[Count | None, BeforeValidator(none_of)] = None
    """Number of channels to which feature maps are reduced, by the principal components of the training
    images' cells; makes vectors shorter and everything after the maps faster. null: all channels."""
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
    """Fine-tuning of the fully connected layers, and of convolutional ones through the pyramid."""

    layers: Literal["fc", "conv2+", "conv3+", "conv4+", "conv5+", "all"] = "fc"
    """Layers that are trained. fc: the fully connected ones, on cached feature maps; all: the convolutional
    ones as well; conv3+: those from the third resolution of the maps on (conv3_1 of VGG-16, layer2 of a
    ResNet). Then maps are computed again for the SVMs and regressors, and the layer of
    `features.project` is trained, too."""
    sampling: Literal["auto", "regions", "images"] = "auto"
    """Where the windows of a batch are from. regions: from many images, which takes cached maps; images:
    from `batch_images` images, whose maps are computed in the step (Girshick 2015, Fast R-CNN). auto:
    regions with `layers: fc`, images otherwise."""
    batch_images: Count = 2
    """Number of images per batch with sampling: images; each has an equal share of the windows."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimizer of fine-tuning. sgd: with momentum, as in the paper; adamw: Adam with decoupled weight
    decay, which needs fewer batches from a random head."""
    schedule: Literal["step", "cosine"] = "step"
    """Course of the learning rate. step: divided by 10 after `drop_after`; cosine: along half a cosine to
    0, after a linear start over a tenth of the batches, at most 50."""
    conv_rate: PositiveFloat = 0.2
    """Factor on the learning rate for convolutional layers."""
    image_scales: Annotated[
        Annotated[list[Side], Field(min_length=2, max_length=2), AfterValidator(interval)] | None,
        BeforeValidator(none_of),
    ] = None
    """Interval from which the shorter side of a training image is drawn with sampling: images. null: one
    of `scales`."""
    box_loss: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the box regression loss beside that of the classes, with sampling: images (Girshick
    2015). 0: classes alone."""

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
    """Momentum of SGD, or β₁ of AdamW."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 5e-4
    """Weight decay: L2 penalty of SGD, decoupled decay of AdamW."""
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

    @property
    def on_images(self) -> bool:
        """Check whether a batch has whole images, whose maps are computed in the step."""
        return self.sampling == "images" or (self.sampling == "auto" and self.layers != "fc")

    @property
    def windows_per_image(self) -> int:
        """Maximum number of windows drawn from an image, for a pool or for a batch."""
        return max(1, self.batch_size // self.batch_images) if self.on_images else self.pool_windows

    @model_validator(mode="after")
    def _sampling_fits(self) -> FinetuneConfig:
        if not self.on_images and self.layers != "fc":
            raise ValueError(f"layers: {self.layers} needs sampling: images")
        if not self.on_images and self.box_loss:
            raise ValueError("box_loss needs sampling: images")
        if not self.on_images and self.image_scales:
            raise ValueError("image_scales needs sampling: images")
        return self


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

    source: Literal["ridge", "finetune"] = "ridge"
    """Where the regressors are from. ridge: regression on the features of `layer`, per class, as in the
    paper; finetune: the layer that `finetune.box_loss` trained, on the last layer's features."""
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
    box_voting: Annotated[Fraction | None, BeforeValidator(none_of)] = None
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
    fine-tuned network itself, by the log odds of its probabilities, as in Fast R-CNN."""
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
        tuned = self.finetune if self.head is not None else None
        if self.classifier == "softmax" and tuned is None:
            raise ValueError("classifier: softmax needs a head and finetune settings")
        if self.classifier == "softmax" and self.svm.layer not in ("auto", layers[-1]):
            raise ValueError(f"svm.layer: {self.svm.layer} has no effect with classifier: softmax")
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

    def learns_boxes(self) -> bool:
        """Check whether fine-tuning trains a layer of box deltas beside the classes."""
        return self.head is not None and self.finetune is not None and self.finetune.box_loss > 0

    def tunes_conv(self) -> bool:
        """Check whether fine-tuning changes the feature maps."""
        tuned = self.finetune if self.head is not None else None
        return tuned is not None and tuned.layers != "fc"

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
