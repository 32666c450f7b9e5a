"""Settings of what is trained: fully connected layers, SVMs and box regressors.

Every default is the paper's value (He et al., arXiv 1406.4729v4) unless its line says otherwise.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveFloat,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from sppdet.setting_types import Count, Fraction, Section, Side, Width, interval, none_of

Layer = Literal["pool5", "fc6", "fc7"]


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
    """Number of snapshots to compare, evenly spaced over the batches; with schedule: cosine, over their
    last fifth, where the rate has fallen to about a tenth of `lr`. 1: the last one."""
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
    max_negatives: Annotated[Count | None, BeforeValidator(none_of)] = None
    """Maximum number of hard negatives of a class that are kept when it is retrained: those with the
    highest scores (not in the paper). Bounds the memory of the SVMs on large sets, which is about (objects
    + classes × (this + `retrain_after`)) × width × 4 bytes. null: all above `evict_threshold`."""
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

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the bound where there is none: models from before it keep their fingerprints."""
        raw: dict[str, Any] = handler(self)
        if raw.get("max_negatives", 0) is None:
            del raw["max_negatives"]
        return raw


class CalibrateConfig(Section):
    """Calibration of scores on training images, each by a model that hasn't seen it (not in the paper)."""

    folds: Literal["auto"] | Annotated[int, Field(ge=2, le=1000)] = "auto"
    """Number of folds of the training images. For each, SVMs and box regressors are solved without it.
    auto: 20 below 50 images, 10 below 200, else 5. A softmax is calibrated on the images that fine-tuning
    has held out instead."""


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
