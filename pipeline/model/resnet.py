"""The residual networks of He et al. 2015, and the plain ones they are compared with, under torchvision's parameter names.

Source: Deep Residual Learning for Image Recognition, https://arxiv.org/abs/1512.03385
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypedDict, Unpack

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.model.blocks import BasicBlock, Block, BlurConv2d, BottleneckBlock, Shortcut, conv

_LEAST_TO_BLUR = 16  # channels
Init = Literal["kaiming_fan_out", "kaiming_fan_in", "default"]


@dataclass(frozen=True)
class Spec:
    """Everything about a network but its number of classes; each list has one entry for each feature-map size (stage).

    Args:
        n_blocks: Blocks of each stage.
        n_channels: Output channels of each stage.
        bottlenecks: Channels of the 3x3 convolution in each stage's bottleneck blocks. None: basic blocks.
        img_channels: Channels of the images.
        first_kernel_size: 7 (stride 2, then a 3x3 max-pool of stride 2) or 3 (stride 1, no max-pool).
        shortcut: A zero padding, B projection where the shape changes, C projection everywhere. None: a plain network.
        init: Convolution weights: `kaiming_fan_out`, normal with variance 2 / (kernel area x output channels),
            `kaiming_fan_in`, the same with input channels, or `default`, PyTorch's.
            Source: https://arxiv.org/abs/1502.01852 section 2.2, backward and forward case.
        zero_init_gamma: Start the last gamma of each block that has a shortcut at zero, so that it passes its input on.
            Source: https://arxiv.org/abs/1706.02677 section 5.1.
        blurpool: Blur the input of strided convolutions with 16 input channels or more.
        drop_path: Probability that an image skips the last residual branch in training; from zero at the first, it rises
            linearly. Source: https://arxiv.org/abs/1603.09382 section 4.
        prior_bias: Start the biases of the classifier at -log(classes), instead of PyTorch's.

    Raises:
        ConfigError: naming each field that can't be used.
    """

    n_blocks: Sequence[int]
    n_channels: Sequence[int]
    bottlenecks: Sequence[int] | None = None
    img_channels: int = 3
    first_kernel_size: int = 7
    shortcut: Shortcut | None = "B"
    init: Init = "kaiming_fan_out"
    zero_init_gamma: bool = True
    blurpool: bool = False
    drop_path: float = 0.0
    prior_bias: bool = False

    def __post_init__(self) -> None:
        """Refuse what can't be built."""
        problems = self._bad_lists() or self._bad_values()
        if problems:
            raise ConfigError("\n".join(f"model.{problem}" for problem in problems))

    @property
    def stem_channels(self) -> int:
        """Channels out of the first convolution: what the first stage works in, as in table 1 and section 4.2 of the paper."""
        return (self.bottlenecks or self.n_channels)[0]

    def _bad_lists(self) -> list[str]:
        lists = {"n_blocks": self.n_blocks, "n_channels": self.n_channels}
        if self.bottlenecks is not None:
            lists["bottlenecks"] = self.bottlenecks
        bad = [
            f"{name}: must be a list of positive numbers, one for each stage, not {list(values)}"
            for name, values in lists.items()
            if not values or min(values) < 1
        ]
        if len({len(values) for values in lists.values()}) > 1:
            lengths = ", ".join(f"{name} has {len(values)}" for name, values in lists.items())
            bad.append(f"n_blocks: the lists differ in length ({lengths}); give each one entry for each stage")
        return bad

    def _bad_values(self) -> list[str]:
        bad = []
        if self.first_kernel_size not in (3, 7):
            bad.append(f"first_kernel_size: must be 7 (stride 2, max-pool) or 3 (stride 1), not {self.first_kernel_size}")
        if self.img_channels < 1:
            bad.append(f"img_channels: must be positive, not {self.img_channels}")
        widths = [self.stem_channels, *self.n_channels]
        if self.shortcut == "A" and widths != sorted(widths):
            bad.append(f"shortcut: A can only add channels, and here they go {widths} from the first convolution on; use B")
        return bad


class ResNetBase(nn.Module):
    """The network up to its globally average-pooled features: no linear layer, no softmax."""

    def __init__(self, spec: Spec) -> None:
        """Make the layers and their initial weights."""
        super().__init__()
        self.spec = spec
        large = spec.first_kernel_size == 7
        self.conv1 = conv(spec.img_channels, spec.stem_channels, spec.first_kernel_size, 2 if large else 1)
        self.bn1 = nn.BatchNorm2d(spec.stem_channels)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity()
        for stage in range(len(spec.n_blocks)):
            self.add_module(f"layer{stage + 1}", _stage(spec, stage))
        if spec.blurpool:
            self._blur()
        self._initialise()
        self._skip_some()

    @property
    def n_features(self) -> int:
        """Length of the feature vector."""
        return self.spec.n_channels[-1]

    def features(self, images: Tensor) -> Tensor:
        """Return the features `[batch, n_features]` of images `[batch, img_channels, height, width]`."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(images)), inplace=True))
        for stage in range(len(self.spec.n_blocks)):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return F.adaptive_avg_pool2d(x, 1).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features `[batch, n_features]` of images `[batch, img_channels, height, width]`."""
        return self.features(images)

    def _blur(self) -> None:
        """Source: ffcv-imagenet's `apply_blurpool`: all convolutions with a stride but the one that sees the image."""
        for name, module in list(self.named_modules()):
            if isinstance(module, nn.Conv2d) and max(module.stride) > 1 and module.in_channels >= _LEAST_TO_BLUR:
                parent, _, child = name.rpartition(".")
                setattr(self.get_submodule(parent), child, BlurConv2d(module))

    def _skip_some(self) -> None:
        blocks = [m for m in self.modules() if isinstance(m, Block)]
        for i, block in enumerate(blocks):
            block.drop_path = self.spec.drop_path * i / max(len(blocks) - 1, 1)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and self.spec.init != "default":
                mode: Literal["fan_in", "fan_out"] = "fan_out" if self.spec.init == "kaiming_fan_out" else "fan_in"
                nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            elif isinstance(module, Block) and module.downsample is not None and self.spec.zero_init_gamma:
                nn.init.zeros_(module.last_norm.weight)


class ResNet(ResNetBase):
    """A classifier: the features under a linear layer."""

    def __init__(self, spec: Spec, num_classes: int = 1000) -> None:
        """Make the layers and their initial weights."""
        super().__init__(spec)
        self.fc = nn.Linear(self.n_features, num_classes)
        if spec.prior_bias:
            nn.init.constant_(self.fc.bias, -math.log(num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `[batch, num_classes]` of images `[batch, img_channels, height, width]`."""
        logits: Tensor = self.fc(self.features(images))
        return logits


def _stage(spec: Spec, stage: int) -> nn.Sequential:
    """Return the blocks of one feature-map size; the first one halves the size, but for the very first stage."""
    n_in = spec.n_channels[stage - 1] if stage else spec.stem_channels
    n_out = spec.n_channels[stage]
    blocks: list[Block] = []
    for i in range(spec.n_blocks[stage]):
        change = (n_in if i == 0 else n_out, n_out, 2 if i == 0 and stage > 0 else 1)
        if spec.bottlenecks is None:
            blocks.append(BasicBlock(*change, spec.shortcut))
        else:
            blocks.append(BottleneckBlock(*change, spec.shortcut, spec.bottlenecks[stage]))
    return nn.Sequential(*blocks)


def _cifar(n: int) -> Spec:
    """Return the network of 6n + 2 layers for 32x32 images; section 4.2 of the paper."""
    return Spec((n, n, n), (16, 32, 64), first_kernel_size=3, shortcut="A")


_BASIC, _WIDE = (64, 128, 256, 512), (256, 512, 1024, 2048)
PRESETS: dict[str, Spec] = {
    "resnet18": Spec((2, 2, 2, 2), _BASIC),
    "resnet34": Spec((3, 4, 6, 3), _BASIC),
    "resnet50": Spec((3, 4, 6, 3), _WIDE, _BASIC),
    "resnet101": Spec((3, 4, 23, 3), _WIDE, _BASIC),
    "resnet152": Spec((3, 8, 36, 3), _WIDE, _BASIC),
    **{f"cifar_resnet{6 * n + 2}": _cifar(n) for n in (3, 5, 7, 9, 18)},
}
"""The paper's networks by name. Source: table 1 and section 4.2 of the paper."""


class Options(TypedDict, total=False):
    """What the functions below take beside the number of classes: fields of `Spec` that differ from the preset's."""

    img_channels: int
    first_kernel_size: int
    shortcut: Shortcut | None
    init: Init
    zero_init_gamma: bool
    blurpool: bool
    drop_path: float
    prior_bias: bool


def _preset(name: str, num_classes: int, options: Options) -> ResNet:
    return ResNet(replace(PRESETS[name], **options), num_classes)


def resnet18(num_classes: int = 1000, **options: Unpack[Options]) -> ResNet:
    """Build the 18-layer ImageNet network of basic blocks."""
    return _preset("resnet18", num_classes, options)


def resnet34(num_classes: int = 1000, **options: Unpack[Options]) -> ResNet:
    """Build the 34-layer ImageNet network of basic blocks."""
    return _preset("resnet34", num_classes, options)


def resnet50(num_classes: int = 1000, **options: Unpack[Options]) -> ResNet:
    """Build the 50-layer ImageNet network of bottleneck blocks."""
    return _preset("resnet50", num_classes, options)


def resnet101(num_classes: int = 1000, **options: Unpack[Options]) -> ResNet:
    """Build the 101-layer ImageNet network of bottleneck blocks."""
    return _preset("resnet101", num_classes, options)


def resnet152(num_classes: int = 1000, **options: Unpack[Options]) -> ResNet:
    """Build the 152-layer ImageNet network of bottleneck blocks."""
    return _preset("resnet152", num_classes, options)


def cifar_resnet20(num_classes: int = 10, **options: Unpack[Options]) -> ResNet:
    """Build the 20-layer network for 32x32 images."""
    return _preset("cifar_resnet20", num_classes, options)


def cifar_resnet32(num_classes: int = 10, **options: Unpack[Options]) -> ResNet:
    """Build the 32-layer network for 32x32 images."""
    return _preset("cifar_resnet32", num_classes, options)


def cifar_resnet44(num_classes: int = 10, **options: Unpack[Options]) -> ResNet:
    """Build the 44-layer network for 32x32 images."""
    return _preset("cifar_resnet44", num_classes, options)


def cifar_resnet56(num_classes: int = 10, **options: Unpack[Options]) -> ResNet:
    """Build the 56-layer network for 32x32 images."""
    return _preset("cifar_resnet56", num_classes, options)


def cifar_resnet110(num_classes: int = 10, **options: Unpack[Options]) -> ResNet:
    """Build the 110-layer network for 32x32 images."""
    return _preset("cifar_resnet110", num_classes, options)
