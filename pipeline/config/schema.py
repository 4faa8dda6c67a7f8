"""The schema of a configuration: every key with its type, default and meaning."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from pipeline.config.fields import MEASURED, RUNNING, Channels3, Fraction, Positive, Section, Steps, only_if
from pipeline.config.sections import Augment, Ema, Expect, Finetune, Loss, Mix, Optim, Resize, Schedule
from pipeline.units import Duration


def _some_time(value: Duration) -> Duration:
    if value.value <= 0:
        raise ValueError(f"must be longer than nothing, not {value}")
    return value


class Run(Section):
    """Where a run lives and what it is called."""

    kind: ClassVar = RUNNING

    name: str = ""
    """Name in listings and in MLflow; empty: the name of the config file."""
    dir: Path | None = None
    """Directory of the run; one that holds a run is continued. Null: a new directory under `run.root`."""
    root: Path = Path("runs")
    """Where new run directories are made."""
    allow_changes: bool = False
    """Continue a run although keys that change what is learned differ from those it was started with."""

    @field_validator("name")
    @classmethod
    def _is_one_line_of_text(cls, name: str) -> str:
        if not name.isprintable():
            raise ValueError(f"must be printable, without line breaks and other control characters, not {name!r}")
        return name


class Data(Section):
    """Images and how they become batches."""

    root: Annotated[Path | None, MEASURED] = None
    """Folder with `train/<class>/*` and `val/<class>/*`, ImageNet's layout."""
    cache: Annotated[Path | None, RUNNING] = None
    """Where indexes of data roots are kept. Null: `$XDG_CACHE_HOME/image-pipeline` or `~/.cache/image-pipeline`."""
    executor: Literal["auto", "dali", "hybrid", "reference", "synthetic"] = "auto"
    """What makes batches: dali, hybrid (DALI and torch), reference (PIL), or synthetic. auto: dali on GPUs, else hybrid."""
    device: Annotated[Literal["auto", "cpu", "gpu"], RUNNING, only_if("data.executor", "auto", "dali")] = "auto"
    """Where DALI decodes and resizes. auto: the GPU where training runs on one."""
    resolution: Positive = 224
    """Side of the square training images, in pixels."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area that a training crop covers."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of a training crop."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip in training."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Filter that images are resized with, antialiased, in training and evaluation."""
    repeats: Positive = 1
    """Times that each image comes in a step, augmented differently; an epoch keeps its length and sees fewer images."""
    mean: Channels3 = (0.485, 0.456, 0.406)
    """Mean of each channel (pixels scaled to 0-1) that normalisation takes off."""
    std: Channels3 = (0.229, 0.224, 0.225)
    """Standard deviation of each channel (pixels scaled to 0-1) that normalisation divides by."""
    stage_from: Annotated[str | None, RUNNING] = None
    """Folder or URL (s3://, https:// and what else fsspec knows) of a data root to copy to each node. Null: `data.root`."""
    stage_to: Annotated[Path | None, RUNNING] = None
    """Folder on each node's own disk that the data root is copied to before training, and read from. Null: no copy."""
    order: Literal["full", "blocks"] = "full"
    """Shuffling in training: full, or shuffled runs of neighbours, for network file systems and spinning disks."""
    block: Annotated[Positive, only_if("data.order", "blocks")] = 64
    """Neighbouring images that are read together with `data.order=blocks`."""
    window: Annotated[Positive, only_if("data.order", "blocks")] = 256
    """Blocks whose images are shuffled among each other with `data.order=blocks`."""
    quarantine: Annotated[Path | None, MEASURED] = None
    """List of bad images to leave out, as `data verify --quarantine` writes it."""
    max_bad_fraction: Annotated[Fraction, RUNNING] = 0.001
    """Share of a split's images that may be unreadable; they are replaced in training and left out in evaluation."""
    threads: Annotated[Positive, RUNNING] = 4
    """Decoding threads of each process."""
    prefetch: Annotated[Positive, RUNNING] = 2
    """Batches prepared ahead in each process."""
    synthetic_train: Annotated[Positive, only_if("data.executor", "synthetic")] = 1_281_167
    """Number of training images that the synthetic executor pretends to have."""
    synthetic_val: Annotated[Positive, only_if("data.executor", "synthetic")] = 50_000
    """Number of validation images that the synthetic executor pretends to have."""
    synthetic_classes: Annotated[Positive, only_if("data.executor", "synthetic")] = 1000
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

    kind: ClassVar = MEASURED

    resize: Positive = 256
    """Length that the shorter side is resized to, in pixels."""
    crop: Positive = 224
    """Side of the square cut from the centre, in pixels."""
    every: Steps = Duration(1, "ep")
    """How often to evaluate in training; the end of training is always evaluated."""
    batch: Positive | None = None
    """Images a batch of each process. Null: `batch.micro`."""
    flip: bool = False
    """Average the logits of each image and of its mirror image (test-time augmentation)."""

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
    init: Literal["kaiming_fan_out", "kaiming_fan_in", "default"] = "kaiming_fan_out"
    """Initial convolution weights: Kaiming normal with fan-out or fan-in, or PyTorch's default."""
    blurpool: bool = False
    """Blur the input of every strided convolution with at least 16 input channels against aliasing (BlurPool)."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth: probability that an image skips the last residual branch; from zero at the first, it rises linearly."""
    prior_bias: Annotated[bool, only_if("loss.name", "binary_cross_entropy")] = False
    """Start the last layer's biases at -log(classes), where a sigmoid per class begins at the classes' share."""


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
            raise ValueError(f"global: {self.global_} is not a multiple of batch.micro ({self.micro}); change one of the two")
        return self


class Train(Section):
    """The training loop."""

    epochs: Steps = Duration(90, "ep")
    """Length of the training."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp64"] = "auto"
    """Arithmetic: auto is bf16 where it is native and fp32 elsewhere; fp16 scales the loss; fp64 is for numeric checks."""
    channels_last: bool = True
    """Keep images and convolution weights in NHWC memory order."""
    compile: Annotated[bool, RUNNING] = False
    """Compile the network with torch.compile."""
    deterministic: bool = False
    """Use only deterministic kernels, at some cost in speed on GPUs; the CPU is deterministic either way."""
    log_every: Annotated[Positive, RUNNING] = 50
    """Steps between two lines of log and two points of the training curves; an epoch has at least one."""
    checkpoint_every: Annotated[Steps, RUNNING] = Duration(1, "ep")
    """How often to save a checkpoint to resume from."""
    keep_checkpoints: Annotated[Positive, RUNNING] = 2
    """Number of newest checkpoints kept; the best, and the one that the oldest kept knows as the best, are kept beside them."""
    max_time: Annotated[Annotated[float, Field(gt=0)] | None, RUNNING] = None
    """Seconds after which the training saves its state and stops with exit code 75, to be continued. Null: no limit."""
    retry_s: Annotated[float, Field(ge=0), RUNNING] = 60
    """Seconds to wait for trouble that may pass (a full disk, a lock of a dead host) before exiting with code 69."""

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

    kind: ClassVar = RUNNING

    timeout_s: Annotated[float, Field(gt=0)] = 300
    """Seconds after which a silent process is given up."""
    backend: Literal["auto", "nccl", "gloo"] = "auto"
    """Communication library. auto: nccl on GPUs, gloo elsewhere."""


class Launch(Section):
    """How `python -m launch` starts the training and brings it back."""

    kind: ClassVar = RUNNING

    site: Path | None = None
    """File with the site's defaults for SLURM. Null: `image-pipeline/site.yaml` in `$XDG_CONFIG_HOME` or `~/.config`."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """How often the processes are started again on their nodes after one was killed, before the job is given up."""
    max_requeues: Annotated[int, Field(ge=0)] = 50
    """How often a SLURM job is requeued to go on where it was, before it is given up."""
    max_idle_requeues: Annotated[int, Field(gt=0)] = 3
    """How often in a row a SLURM job is requeued without a new step in a checkpoint, before it is given up."""
    join_timeout_s: Annotated[float, Field(gt=0)] = 600
    """Seconds that a job's nodes wait for each other at the start, before they exit with code 69."""


class Track(Section):
    """Tracking in MLflow; the journal in the run directory is always written."""

    kind: ClassVar = RUNNING

    model_config = ConfigDict(**{**Section.model_config, "validate_by_name": True, "serialize_by_alias": True})

    enabled: bool = True
    """Bring the journal into MLflow while training."""
    uri: str | None = None
    """MLflow tracking server or store. Null: `$MLFLOW_TRACKING_URI`, else a sqlite database `mlflow.db` beside the runs."""
    experiment: str = "default"
    """MLflow experiment that the run belongs to."""
    tags: dict[str, str] = {}
    """Tags of the run to find and group it by, such as `track.tags.group=wide`; `compare tag:group=wide` takes all of them."""
    system_every_s: Annotated[float, Field(gt=0)] | None = 10
    """Seconds between two samples of processor, memory, disk, network and GPUs on each node. Null: none."""
    pictures: bool = True
    """Keep pictures with the run: the first training batch, curves, the confusion matrix, the worst validation errors."""
    model: bool = True
    """Keep the final network as an MLflow model too: an exported graph with its signature, in a few seconds at the end."""
    register_: Annotated[str, only_if("track.model")] = Field(default="", alias="register")
    """Name in MLflow's model registry to add that model to; its alias `champion` moves there if `val_top1` is higher."""
    drain_s: Annotated[float, Field(ge=0)] = 60
    """Seconds that the end of a run waits for the tracking server to take what is left; `sync` ships the rest later."""

    @field_validator("register_")
    @classmethod
    def _taken_by_the_registry(cls, name: str) -> str:
        # MLflow would refuse these only when the network is trained. Source: mlflow/utils/validation.py of MLflow 3.17.
        if "/" in name or ":" in name or name == "." or name.startswith("..") or (name and not name.strip()):
            raise ValueError(f"must be a name without / and :, and more than dots and spaces, not {name!r}")
        return name


class Config(Section):
    """The whole configuration."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the weights, the data order, the crops and the flips."""
    expect: Expect = Expect()
    run: Run = Run()
    data: Data = Data()
    eval: Eval = Eval()
    augment: Augment = Augment()
    resize: Resize = Resize()
    mix: Mix = Mix()
    model: Model = Model()
    finetune: Finetune = Finetune()
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    loss: Loss = Loss()
    ema: Ema = Ema()
    batch: Batch = Batch()
    train: Train = Train()
    dist: Dist = Dist()
    launch: Launch = Launch()
    track: Track = Track()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.mix.on and self.batch.micro < 2:
            raise ValueError("mix: a micro-batch of one image has nothing to mix with; raise batch.micro, or remove mix")
        if self.loss.name == "soft_cross_entropy" and not (self.mix.on or self.loss.label_smoothing):
            raise ValueError(
                "loss.name: soft_cross_entropy needs soft targets, and without mix and loss.label_smoothing they are hard; "
                "use cross_entropy"
            )
        self.resize.check(self.data.resolution, self.train.epochs)
        return self
