"""The building blocks of residual and plain networks: shortcuts, basic and bottleneck blocks.

Source: Deep Residual Learning for Image Recognition, https://arxiv.org/abs/1512.03385
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shortcut = Literal["A", "B", "C"]
"""A zero padding, B projection where the shape changes and identity elsewhere, C projection everywhere."""


class ZeroPadShortcut(nn.Module):
    """Shortcut option A: every `stride`-th pixel, and zeros in the added channels; no parameters.

    Source: sections 3.3 and 4.1 of the paper.
    """

    def __init__(self, added_channels: int, stride: int) -> None:
        """Remember the change of shape."""
        super().__init__()
        self.added_channels, self.stride = added_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """Return `[batch, channels + added_channels, ceil(height / stride), ceil(width / stride)]`, in `x`'s memory format."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added_channels))


class BlurConv2d(nn.Conv2d):
    """A strided convolution whose input is blurred first, so that its stride does not alias; same parameters.

    Source: Zhang 2019 (https://arxiv.org/abs/1904.11486), with the filter before the convolution as in ffcv-imagenet.
    """

    def __init__(self, plain: nn.Conv2d) -> None:
        """Take over the shape of a convolution without a bias."""
        shape = (plain.in_channels, plain.out_channels, plain.kernel_size, plain.stride, plain.padding)
        super().__init__(*shape, bias=False)  # type: ignore[arg-type]
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        kernel = row.outer(row).repeat(plain.in_channels, 1, 1, 1)
        self.blur: Tensor
        self.register_buffer("blur", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of the blurred input."""
        return super().forward(F.conv2d(x, self.blur, padding=1, groups=self.in_channels))


def drop_path(residual: Tensor, probability: float) -> Tensor:
    """Return F(x) set to zero for some images and scaled up for the others, so that the mean stays.

    Source: Huang et al. 2016 (https://arxiv.org/abs/1603.09382).
    """
    kept = torch.rand(len(residual), 1, 1, 1, device=residual.device) >= probability
    return residual * (kept / (1 - probability)).to(residual.dtype)


def conv(n_in: int, n_out: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution that keeps the size but for its stride; no bias, as a batch norm's shift follows."""
    return nn.Conv2d(n_in, n_out, kernel_size, stride, padding=kernel_size // 2, bias=False)


def _shortcut(n_in: int, n_out: int, stride: int, option: Shortcut | None) -> nn.Module | None:
    if option is None:
        return None
    if option != "C" and stride == 1 and n_in == n_out:
        return nn.Identity()
    if option == "A":
        return ZeroPadShortcut(n_out - n_in, stride)
    return nn.Sequential(conv(n_in, n_out, 1, stride), nn.BatchNorm2d(n_out))


class Block(nn.Module):
    """What the two kinds of block share: `relu(F(x) + shortcut(x))`, or `relu(F(x))` in a plain network.

    Sub-classes make F's layers before `downsample`: that is the order of torchvision's state dict.
    """

    downsample: nn.Module | None
    drop_path = 0.0
    """Probability that an image skips F in training."""

    def residual(self, x: Tensor) -> Tensor:
        """Return F(x), `[batch, n_out, height / stride, width / stride]`."""
        raise NotImplementedError

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch norm that ends F."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, `[batch, n_out, height / stride, width / stride]`."""
        out = self.residual(x)
        if self.downsample is not None:
            if self.training and self.drop_path:
                out = drop_path(out, self.drop_path)
            out += self.downsample(x)
        return F.relu(out, inplace=True)


class BasicBlock(Block):
    """3x3 (stride) - BN - ReLU - 3x3 - BN.

    Source: figure 5 of the paper, left.
    """

    def __init__(self, n_in: int, n_out: int, stride: int, shortcut: Shortcut | None) -> None:
        """Make the layers."""
        super().__init__()
        self.conv1 = conv(n_in, n_out, 3, stride)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = conv(n_out, n_out, 3)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.downsample = _shortcut(n_in, n_out, stride, shortcut)

    def residual(self, x: Tensor) -> Tensor:
        """Return F(x)."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out: Tensor = self.bn2(self.conv2(x))
        return out

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch norm that ends F."""
        return self.bn2


class BottleneckBlock(Block):
    """1x1 down to `width` - BN - ReLU - 3x3 (stride) - BN - ReLU - 1x1 up - BN.

    Source: figure 5 of the paper, right, with the stride on the 3x3 convolution instead of the first 1x1 ("v1.5"), as in
    https://catalog.ngc.nvidia.com/orgs/nvidia/resources/resnet_50_v1_5_for_pytorch
    """

    def __init__(self, n_in: int, n_out: int, stride: int, shortcut: Shortcut | None, width: int) -> None:
        """Make the layers."""
        super().__init__()
        self.conv1 = conv(n_in, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, n_out, 1)
        self.bn3 = nn.BatchNorm2d(n_out)
        self.downsample = _shortcut(n_in, n_out, stride, shortcut)

    def residual(self, x: Tensor) -> Tensor:
        """Return F(x)."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        out: Tensor = self.bn3(self.conv3(x))
        return out

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch norm that ends F."""
        return self.bn3
