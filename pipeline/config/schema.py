"""The schema of a configuration: every key with its type, default and meaning.

Not here: reading files (`load`) and values derived from the world and the data (`plan`).
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, field_validator, model_validator

from pipeline.units import Duration

Steps = Annotated[
    Duration,
    BeforeValidator(lambda v: v if isinstance(v, Duration) else Duration.parse(v)),
    PlainSerializer(str),
]
"""A duration: `90ep` epochs, `500st` steps, `10%` of the training."""
Channels3 = tuple[float, float, float]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _some_time(value: Duration) -> Duration:
    if value.value <= 0:
        raise ValueError(f"must be longer than nothing, not {value}")
    return value


class Section(BaseModel):
    """A frozen group of keys that refuses unknown ones."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        validate_default=True,
        protected_namespaces=(),
    )


class Run(Section):
    """Where a run lives and what it is called."""

    name: str = ""
    """Name in listings and in MLflow; empty: the name of the config file."""
    dir: Path | None = None
    """Directory of the run; one that holds a run is continued. Null: a new directory under `run.root`."""
    root: Path = Path("runs")
    """Where new run directories are made."""
    allow_changes: bool = False
    """Continue a run although keys that change what is learned differ from those it was started with."""


class Data(Section):
    """Images and how they become batches."""

    root: Path | None = None
    """Folder with `train/<class>/*` and `val/<class>/*`, ImageNet's layout."""
    cache: Path | None = None
    """Where indexes of data roots are kept. Null: `$XDG_CACHE_HOME/image-pipeline` or `~/.cache/image-pipeline`."""
    executor: Literal["auto", "dali", "reference", "synthetic"] = "auto"
    """What executes the plan: DALI, PIL with torchvision, or batches from nowhere. auto: DALI where it is installed."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where DALI decodes and resizes. auto: the GPU where training runs on one."""
    resolution: Positive = 224
    """Side of the square training images, in pixels."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area that a training crop covers."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of a training crop."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip in training."""
    mean: Channels3 = (0.485, 0.456, 0.406)
    """Mean of each channel (pixels scaled to 0-1) that normalisation takes off."""
    std: Channels3 = (0.229, 0.224, 0.225)
    """Standard deviation of each channel (pixels scaled to 0-1) that normalisation divides by."""
    threads: Positive = 4
    """Decoding threads of each process."""
    prefetch: Positive = 2
    """Batches prepared ahead in each process."""
    synthetic_train: Positive = 1_281_167
    """Number of training images that the synthetic executor pretends to have."""
    synthetic_val: Positive = 50_000
    """Number of validation images that the synthetic executor pretends to have."""
    synthetic_classes: Positive = 1000
    """Number of classes that the synthetic executor pretends to have."""

    @field_validator("crop_scale", "crop_ratio")
    @classmethod
    def _ordered(cls, pair: tuple[float, float]) -> tuple[float, float]:
        if not 0 < pair[0] <= pair[1]:
            raise ValueError(f"must be two positive numbers, the smaller first, not {list(pair)}")
        return pair

    @field_validator("std")
    @classmethod
    def _not_zero(cls, std: Channels3) -> Channels3:
        if min(std) <= 0:
            raise ValueError(f"must be positive, not {list(std)}")
        return std


class Eval(Section):
    """Evaluation: each validation image counted exactly once."""

    resize: Positive = 256
    """Length that the shorter side is resized to, in pixels."""
    crop: Positive = 224
    """Side of the square cut from the centre, in pixels."""
    every: Steps = Duration(1, "ep")
    """How often to evaluate in training; the end of training is always evaluated."""
    batch: Positive | None = None
    """Images a batch of each process. Null: `batch.micro`."""

    @field_validator("every")
    @classmethod
    def _not_zero(cls, value: Duration) -> Duration:
        return _some_time(value)

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.crop > self.resize:
            raise ValueError(
                f"crop ({self.crop}) is larger than resize ({self.resize}), which it is cut from; raise eval.resize"
            )
        return self


class Model(Section):
    """The network."""

    name: str = "resnet50"
    """A preset (resnet18 ... 152, cifar_resnet20 ... 110), `resnet` built from the keys below, or `timm/NAME`."""
    block: Literal["bottleneck", "basic", "plain"] | None = None
    """Kind of block for `resnet`: bottleneck, basic (two 3x3), or plain (basic without shortcuts). Null: what the name says."""
    n_blocks: tuple[Positive, ...] | None = None
    """Blocks of each feature-map size, for `resnet`."""
    n_channels: tuple[Positive, ...] | None = None
    """Output channels of each feature-map size, for `resnet`."""
    bottlenecks: tuple[Positive, ...] | None = None
    """Bottleneck width of each feature-map size, for `resnet` with bottleneck blocks."""
    first_kernel_size: Positive | None = None
    """Kernel of the first convolution: 7 (stride 2, then a max-pool) or 3 (stride 1, no max-pool). Null: what the name says."""
    shortcut: Literal["A", "B", "C"] | None = None
    """Shortcuts: A zero padding, B projection where shapes change, C projection everywhere. Null: what the name says."""
    zero_init_gamma: bool = True
    """Start the last batch norm of each residual block at zero, so that blocks start as identities."""
    init: Literal["kaiming_fan_out", "default"] = "kaiming_fan_out"
    """Initial convolution weights: Kaiming normal with fan-out, or PyTorch's default."""


class Optim(Section):
    """The optimiser."""

    name: Literal["sgd"] = "sgd"
    """Algorithm: sgd (with momentum)."""
    lr: Annotated[float, Field(gt=0)] = 0.256
    """Peak learning rate for a global batch of `optim.lr_per` images."""
    lr_per: Positive | None = 256
    """Global batch that `optim.lr` is stated for; the rate is scaled in proportion. Null: `optim.lr` is used as it is."""
    momentum: Fraction = 0.875
    """Momentum."""
    nesterov: bool = False
    """Use Nesterov's momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 2**-15
    """Weight decay (L2 penalty added to the gradient)."""
    decay_norm_and_bias: bool = False
    """Apply weight decay to the parameters of normalisation layers and to biases too."""


class Schedule(Section):
    """Learning rate over time."""

    name: Literal["cosine", "constant"] = "cosine"
    """Shape after the warm-up: cosine down to `schedule.end_lr`, or constant."""
    warmup: Steps = Duration(5, "ep")
    """Length of the linear rise from zero to the peak."""
    end_lr: Annotated[float, Field(ge=0)] = 0.0
    """Learning rate that the cosine ends at."""


class Loss(Section):
    """The loss."""

    name: Literal["cross_entropy"] = "cross_entropy"
    """Loss function."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the target's mass that is spread over all classes."""


class Batch(Section):
    """The mathematics of a step, whatever the number of processes."""

    model_config = ConfigDict(**{**Section.model_config, "validate_by_name": True, "serialize_by_alias": True})

    global_: Literal["auto"] | Positive = Field(default="auto", alias="global")
    """Images of one optimiser step over all processes. auto: `batch.micro` times the number of processes."""
    micro: Positive = 256
    """Images of one forward pass, which batch norm sees together."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.global_ != "auto" and self.global_ % self.micro:
            raise ValueError(f"global ({self.global_}) is not a multiple of micro ({self.micro})")
        return self


class Train(Section):
    """The training loop."""

    epochs: Steps = Duration(90, "ep")
    """Length of the training."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp64"] = "auto"
    """Arithmetic: auto is bf16 where it is native and fp32 elsewhere; fp16 scales the loss; fp64 is for numeric checks."""
    channels_last: bool = True
    """Keep images and convolution weights in NHWC memory order."""
    compile: bool = False
    """Compile the network with torch.compile."""
    deterministic: bool = False
    """Use only deterministic kernels, at some cost in speed on GPUs; the CPU is deterministic either way."""
    log_every: Positive = 50
    """Steps between two lines of log and two points of the training curves; an epoch has at least one."""
    checkpoint_every: Steps = Duration(1, "ep")
    """How often to save a checkpoint to resume from."""
    keep_checkpoints: Positive = 2
    """Number of newest checkpoints kept; the best is kept beside them."""
    max_time: Annotated[float, Field(gt=0)] | None = None
    """Seconds after which the training saves its state and stops with exit code 75, to be continued. Null: no limit."""

    @field_validator("checkpoint_every")
    @classmethod
    def _not_zero(cls, value: Duration) -> Duration:
        return _some_time(value)

    @field_validator("epochs")
    @classmethod
    def _not_a_share(cls, value: Duration) -> Duration:
        if value.unit == "%" or value.value <= 0:
            raise ValueError(f"must be a positive number of epochs or steps, not {value}")
        return value


class Dist(Section):
    """Communication between processes."""

    timeout_s: Annotated[float, Field(gt=0)] = 300
    """Seconds after which a silent process is given up."""
    backend: Literal["auto", "nccl", "gloo"] = "auto"
    """Communication library. auto: nccl on GPUs, gloo elsewhere."""


class Launch(Section):
    """How `python -m launch` starts the training and brings it back."""

    site: Path | None = None
    """File with the site's defaults for SLURM. Null: `image-pipeline/site.yaml` in `$XDG_CONFIG_HOME` or `~/.config`."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """How often the processes are started again on their nodes after one was killed, before the job is given up."""
    max_requeues: Annotated[int, Field(ge=0)] = 50
    """How often a SLURM job is requeued to go on where it was, before it is given up."""


class Track(Section):
    """Tracking in MLflow; the journal in the run directory is always written."""

    enabled: bool = True
    """Bring the journal into MLflow while training."""
    uri: str | None = None
    """MLflow tracking server or store. Null: `$MLFLOW_TRACKING_URI`, else a sqlite database `mlflow.db` beside the runs."""
    experiment: str = "default"
    """MLflow experiment that the run belongs to."""
    drain_s: Annotated[float, Field(ge=0)] = 60
    """Seconds that the end of a run waits for the tracking server to take what is left; `sync` ships the rest later."""


class Config(Section):
    """The whole configuration."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the weights, the data order, the crops and the flips."""
    run: Run = Run()
    data: Data = Data()
    eval: Eval = Eval()
    model: Model = Model()
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    loss: Loss = Loss()
    batch: Batch = Batch()
    train: Train = Train()
    dist: Dist = Dist()
    launch: Launch = Launch()
    track: Track = Track()
