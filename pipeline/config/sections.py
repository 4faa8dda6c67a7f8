"""The groups of keys that make a recipe: augmentation, mixing, optimiser, schedule, loss, averaging, fine-tuning."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.fields import RUNNING, Fraction, Positive, Section, Steps, only_if
from pipeline.units import Duration

NonNegative = Annotated[float, Field(ge=0)]
_RANDAUGMENT = only_if("augment.policy", "randaugment")
_MOMENTUM = only_if("optim.name", "sgd", "sgdw", "lars")
_BINARY = only_if("loss.name", "binary_cross_entropy")
_STEP = only_if("schedule.name", "step")
_RAMP = only_if("resize.start")
_AVERAGE = only_if("ema.decay or ema.half_life")
_WARM = only_if("schedule.name", "cosine", "step", "poly", "constant")


class Expect(Section):
    """What a run of this recipe should reach; one that leaves the band is warned of and goes on."""

    kind: ClassVar = RUNNING

    images: Positive | None = None
    """Training images of the data set that the bands are for; another data set is not compared. Null: any data set."""
    top1: dict[Annotated[int, Field(gt=0)], tuple[Fraction, Fraction]] = {}
    """Lowest and highest expected validation top-1, as fractions, by finished epoch: `{5: [0.48, 0.53]}`."""

    @field_validator("top1")
    @classmethod
    def _ordered(cls, bands: dict[int, tuple[float, float]]) -> dict[int, tuple[float, float]]:
        for epoch, (low, high) in bands.items():
            if low > high:
                raise ValueError(f"epoch {epoch}: the band ends ({high}) below its start ({low}); swap them")
        return bands


class Augment(Section):
    """What happens to the colours and the shape of training images, after crop and flip, before normalisation."""

    pad: Annotated[int, Field(ge=0)] = 0
    """Pixels by which an image is shifted at most in each direction: a random crop out of the padded image."""
    policy: Literal["none", "randaugment", "trivial", "autoaugment"] = "none"
    """Random operations: RandAugment (timm's, with inc1), TrivialAugmentWide or AutoAugment (torchvision's, for ImageNet)."""
    n: Annotated[int, Field(gt=0, le=16), _RANDAUGMENT] = 2
    """RandAugment: operations for each image, 16 at most."""
    magnitude: Annotated[float, Field(ge=0, le=10), _RANDAUGMENT] = 9
    """RandAugment: strength of the operations, 0 to 10."""
    std: Annotated[NonNegative, _RANDAUGMENT] = 0.5
    """RandAugment: standard deviation of the strength."""
    prob: Annotated[Fraction, _RANDAUGMENT] = 0.5
    """RandAugment: probability that each of the operations is carried out."""
    jitter: tuple[NonNegative, NonNegative, NonNegative, Annotated[float, Field(ge=0, le=0.5)]] = (0.0, 0.0, 0.0, 0.0)
    """Colour jitter: largest change of brightness, contrast, saturation and hue, as in torchvision's ColorJitter."""
    grayscale: Fraction = 0.0
    """Probability that an image loses its colour."""
    erase: Fraction = 0.0
    """Probability that a rectangle (2-33 % of the area) is replaced by the mean colour."""
    fill: Annotated[Literal["black", "mean"], only_if("augment.pad or augment.policy")] = "black"
    """Colour of what shifted, sheared and rotated images leave empty: black, or `data.mean`."""

    @property
    def on(self) -> bool:
        """Whether anything is augmented at all."""
        return bool(self.pad or self.policy != "none" or any(self.jitter) or self.grayscale or self.erase)


class Resize(Section):
    """Progressive resolution: training images grow from `resize.start` to `data.resolution`."""

    start: Positive | None = None
    """Side of the training images at first, in pixels. Null: `data.resolution` from the start."""
    begin: Annotated[Steps, _RAMP] = Duration(0, "ep")
    """When the images begin to grow; the size changes between epochs only."""
    end: Annotated[Steps, _RAMP] = Duration(0, "ep")
    """When they have reached `data.resolution`."""
    multiple: Annotated[Positive, _RAMP] = 32
    """Sizes on the way are rounded to multiples of this many pixels."""

    def check(self, resolution: int, length: Duration) -> None:
        """Refuse a ramp that can't be climbed.

        Raises:
            ValueError: naming the keys.
        """
        if self.start is None:
            return
        if self.start > resolution:
            raise ValueError(f"resize.start: {self.start} pixels is above data.resolution ({resolution}), where the ramp ends")
        begin, end = self.begin.share_of(length), self.end.share_of(length)
        same_unit = self.begin.unit == self.end.unit and self.end.value < self.begin.value
        if same_unit or (begin is not None and end is not None and end < begin):
            raise ValueError(f"resize.end: the ramp ends ({self.end}) before it begins ({self.begin}); swap them")
        for name, place, share in (("begin", self.begin, begin), ("end", self.end, end)):
            if share is not None and share > 1:
                raise ValueError(f"resize.{name}: {place} is after the end of the training ({length}); lower it")


class Mix(Section):
    """Mixing pairs of images and their labels, on the device."""

    mixup: NonNegative = 0.0
    """Mixup: alpha of the Beta distribution of the share; 0: none."""
    cutmix: NonNegative = 0.0
    """CutMix: alpha of the Beta distribution of the area's share; 0: none."""
    prob: Annotated[Fraction, only_if("mix.mixup or mix.cutmix")] = 1.0
    """Probability that a micro-batch is mixed."""
    switch_prob: Annotated[Fraction, only_if("mix.mixup"), only_if("mix.cutmix")] = 0.5
    """Probability of CutMix instead of mixup, where both are on."""

    @property
    def on(self) -> bool:
        """Whether labels become soft."""
        return self.prob > 0 and self.mixup + self.cutmix > 0


class Finetune(Section):
    """Starting from trained weights instead of random ones."""

    weights: Path | None = None
    """Weights to start from: a checkpoint, or a .safetensors, .pt or .pth file, torchvision's and timm's too. Null: random."""
    head: Annotated[Literal["keep", "new"], only_if("finetune.weights")] = "keep"
    """Take the last layer's weights too, or start it anew (another number of classes)."""
    freeze: tuple[str, ...] = ()
    """Parts of the network that stay as they are, batch-norm statistics included: `[stem, layer1]` or a module's name."""

    @model_validator(mode="after")
    def _something_to_freeze(self) -> Self:
        if self.freeze and self.weights is None:
            raise ValueError("freeze: random weights would stay random; set finetune.weights, or remove finetune.freeze")
        return self


class Optim(Section):
    """The optimiser."""

    name: Literal["sgd", "sgdw", "adamw", "lamb", "lars"] = "sgd"
    """Algorithm: sgd, adamw (torch), lamb, lars, sgdw (timm); sgdw decays by `weight_decay` times lr / peak lr a step."""
    lr: Annotated[float, Field(gt=0)] = 0.256
    """Peak learning rate for a global batch of `optim.lr_per` images."""
    lr_per: Positive | None = 256
    """Global batch that `optim.lr` is stated for; the rate is scaled in proportion. Null: `optim.lr` is used as it is."""
    momentum: Annotated[Fraction, _MOMENTUM] = 0.875
    """Momentum of sgd, sgdw and lars."""
    nesterov: Annotated[bool, _MOMENTUM] = False
    """Use Nesterov's momentum (sgd, sgdw, lars)."""
    betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]], only_if("optim.name", "adamw", "lamb")
    ] = (0.9, 0.999)
    """Decay of the running mean and of the running square of the gradient (adamw, lamb)."""
    eps: Annotated[Annotated[float, Field(gt=0)] | None, only_if("optim.name", "adamw", "lamb", "lars")] = None
    """Term that keeps divisions stable (adamw, lamb, lars). Null: the library's default."""
    trust: Annotated[float, Field(gt=0), only_if("optim.name", "lars")] = 0.001
    """Trust coefficient of lars."""
    weight_decay: NonNegative = 2**-15
    """Weight decay: added to the gradient as an L2 penalty (sgd, lars), or apart from it (sgdw, adamw, lamb)."""
    decay_norm_and_bias: bool = False
    """Apply weight decay to the parameters of normalisation layers and to biases too."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the whole gradient; a larger one is scaled down. Null: no limit."""

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and not self.momentum and self.name in ("sgd", "sgdw", "lars"):
            raise ValueError("nesterov: looks ahead along a momentum, which is 0; raise optim.momentum, or set nesterov=false")
        return self


class Schedule(Section):
    """Learning rate over time."""

    name: Literal["cosine", "step", "poly", "linear", "constant"] = "cosine"
    """Shape after the warm-up: cosine or polynomial to `schedule.end_lr`, steps, piecewise linear, or constant."""
    warmup: Annotated[Steps, _WARM] = Duration(5, "ep")
    """Length of the linear rise to the peak."""
    warmup_lr: Annotated[NonNegative | None, _WARM, only_if("schedule.warmup")] = None
    """Learning rate of the first step. Null: the rise begins one step after zero, as in Goyal et al."""
    end_lr: Annotated[NonNegative, only_if("schedule.name", "cosine", "poly")] = 0.0
    """Learning rate that cosine and poly end at."""
    milestones: Annotated[tuple[Steps, ...], _STEP] = ()
    """step: when the rate is multiplied by `schedule.gamma`."""
    gamma: Annotated[float, Field(gt=0, le=1), _STEP] = 0.1
    """step: factor at each milestone."""
    power: Annotated[float, Field(gt=0), only_if("schedule.name", "poly")] = 2.0
    """poly: exponent."""
    points: Annotated[tuple[tuple[Steps, NonNegative], ...], only_if("schedule.name", "linear")] = ()
    """linear: places and shares of the peak that straight lines join: `[[0ep, 0.0001], [2ep, 1], [16ep, 0]]`; no warm-up."""

    @model_validator(mode="after")
    def _has_its_keys(self) -> Self:
        if self.name == "step" and not self.milestones:
            raise ValueError("milestones: needed for schedule.name=step; set them, e.g. [30ep, 60ep, 80ep]")
        if self.name == "linear" and len(self.points) < 2:
            raise ValueError("points: schedule.name=linear needs two or more, e.g. [[0ep, 0], [2ep, 1], [100%, 0]]")
        places = [place for place, _ in self.points]
        values = [place.value for place in places]
        if len({place.unit for place in places}) == 1 and values != sorted(set(values)):
            raise ValueError(f"points: must come one after the other, not {', '.join(map(str, places))}; sort them")
        return self


class Loss(Section):
    """The loss."""

    name: Literal["cross_entropy", "soft_cross_entropy", "binary_cross_entropy"] = "cross_entropy"
    """Loss function; soft_cross_entropy insists on soft targets, binary_cross_entropy has one sigmoid per class."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the target's mass that is spread over all classes."""
    threshold: Annotated[Annotated[float, Field(ge=0, lt=1)] | None, _BINARY] = None
    """binary_cross_entropy: targets above it count as 1, all others as 0. Null: targets stay soft."""
    sum_classes: Annotated[bool, _BINARY] = False
    """binary_cross_entropy: add up over the classes, instead of their mean."""


class Ema(Section):
    """Exponential moving average of the weights, evaluated beside the raw ones."""

    decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the average that each update keeps. Null, and no `ema.half_life`: no average."""
    half_life: Annotated[float, Field(gt=0)] | None = None
    """Optimiser steps after which a weight's share in the average has halved; instead of `ema.decay`."""
    every: Annotated[Positive, _AVERAGE] = 1
    """Optimiser steps between two updates; `ema.decay` is per update."""
    warmup: Annotated[Steps, _AVERAGE] = Duration(0, "ep")
    """How long the average just follows the weights."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.decay is not None and self.half_life is not None:
            raise ValueError("half_life: contradicts ema.decay, which says the same in another way; remove one")
        return self

    @property
    def keep(self) -> float | None:
        """Share of the average that one update keeps, or None if there is no average."""
        return 0.5 ** (self.every / self.half_life) if self.half_life else self.decay
