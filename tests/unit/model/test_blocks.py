import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.model.blocks import BasicBlock, Block, BottleneckBlock, ZeroPadShortcut


def norm(x: Tensor, bn: nn.BatchNorm2d) -> Tensor:
    """Batch norm in train mode, from its definition."""
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (var + bn.eps).sqrt() * bn.weight[:, None, None] + bn.bias[:, None, None]


def make(kind: str, n_in: int, n_out: int, stride: int, shortcut: str | None) -> Block:
    block = (
        BasicBlock(n_in, n_out, stride, shortcut)
        if kind == "basic"
        else BottleneckBlock(n_in, n_out, stride, shortcut, width=5)
    )
    for parameter in block.parameters():
        nn.init.normal_(parameter)  # gammas and betas too: ones and zeros would hide a missing batch norm
    return block.double()


def residual(block: Block, x: Tensor, stride: int) -> Tensor:
    """Return F(x) from the paper's figure 5, with the stride on the first 3x3 convolution."""
    if isinstance(block, BasicBlock):
        x = norm(F.conv2d(x, block.conv1.weight, stride=stride, padding=1), block.bn1).relu()
        return norm(F.conv2d(x, block.conv2.weight, padding=1), block.bn2)
    assert isinstance(block, BottleneckBlock)
    x = norm(F.conv2d(x, block.conv1.weight), block.bn1).relu()
    x = norm(F.conv2d(x, block.conv2.weight, stride=stride, padding=1), block.bn2).relu()
    return norm(F.conv2d(x, block.conv3.weight), block.bn3)


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize(("n_in", "n_out", "stride"), [(6, 6, 1), (6, 8, 1), (6, 8, 2)])
@pytest.mark.parametrize("shortcut", ["A", "B", "C", None])
def test_block_is_the_formula(kind: str, n_in: int, n_out: int, stride: int, shortcut: str | None) -> None:
    block, x = make(kind, n_in, n_out, stride, shortcut), torch.randn(3, n_in, 9, 7, dtype=torch.float64)
    projects = shortcut == "C" or (shortcut == "B" and (n_in, stride) != (n_out, 1))
    expected = residual(block, x, stride)
    if projects:
        assert isinstance(block.downsample, nn.Sequential)
        expected = expected + norm(F.conv2d(x, block.downsample[0].weight, stride=stride), block.downsample[1])
    elif shortcut:
        # Option A as a convolution: the identity matrix picks the old channels and leaves the added ones zero.
        expected = expected + F.conv2d(x, torch.eye(n_out, n_in, dtype=torch.float64)[:, :, None, None], stride=stride)
    kept = x.clone()
    torch.testing.assert_close(block(x), expected.relu(), rtol=1e-9, atol=1e-9)
    assert torch.equal(x, kept), "a block must not change its input in place"
    assert any("downsample" in name for name in block.state_dict()) == projects
    assert not any(isinstance(m, nn.Conv2d) and m.bias is not None for m in block.modules())


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize("training", [True, False])
def test_zero_gamma_makes_a_block_the_identity(kind: str, training: bool) -> None:
    block, x = make(kind, 6, 6, 1, "B").train(training), torch.randn(2, 6, 8, 8, dtype=torch.float64)
    nn.init.zeros_(block.last_norm.weight)
    nn.init.zeros_(block.last_norm.bias)
    assert torch.equal(block(x), x.relu())


@settings(deadline=None, max_examples=50)
@given(
    added=st.integers(0, 5),
    stride=st.integers(1, 3),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
)
def test_zero_padding_keeps_pixels_and_adds_zeros(added: int, stride: int, shape: tuple[int, int, int, int]) -> None:
    x = torch.randn(shape)
    out = ZeroPadShortcut(added, stride)(x)
    batch, channels, height, width = shape
    assert out.shape == (batch, channels + added, -(-height // stride), -(-width // stride))
    assert not out[:, channels:].any()
    for row in range(out.shape[2]):
        for column in range(out.shape[3]):
            assert torch.equal(out[:, :channels, row, column], x[:, :, row * stride, column * stride])


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_zero_padding_keeps_the_memory_format(layout: torch.memory_format) -> None:
    x = torch.randn(2, 4, 8, 8).to(memory_format=layout)
    assert ZeroPadShortcut(4, 2)(x).is_contiguous(memory_format=layout)


def test_blurpool_has_the_plain_networks_parameters_and_removes_what_would_alias() -> None:
    from pipeline.model.blocks import BlurConv2d
    from pipeline.model.resnet import resnet18

    plain, blurred = resnet18(3), resnet18(3, blurpool=True)
    assert plain.state_dict().keys() == blurred.state_dict().keys()
    found = [name for name, m in blurred.named_modules() if isinstance(m, BlurConv2d)]
    assert found == [f"layer{n}.0.{part}" for n in (2, 3, 4) for part in ("conv1", "downsample.0")]
    layer = BlurConv2d(torch.nn.Conv2d(16, 16, 1, stride=2, bias=False))
    stripes = torch.ones(1, 16, 8, 8)
    stripes[..., ::2] = -1  # seen by a stride of 2 as one colour
    assert layer(stripes)[..., 1:-1, 1:-1].abs().max() < 1e-6 and layer(torch.ones(1, 16, 8, 8)).abs().max() > 0.01


def test_stochastic_depth_rises_with_depth_and_keeps_the_mean() -> None:
    from pipeline.model.blocks import Block, drop_path
    from pipeline.model.resnet import resnet18

    net = resnet18(3, drop_path=0.14)
    rates = [m.drop_path for m in net.modules() if isinstance(m, Block)]
    assert rates == pytest.approx([0.02 * i for i in range(8)])
    torch.manual_seed(0)
    dropped = drop_path(torch.ones(20000, 1, 1, 1), 0.3)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.7]) and dropped.mean() == pytest.approx(1, abs=0.02)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(net.eval()(images), net(images))


def test_a_prior_bias_starts_at_the_classes_share() -> None:
    from pipeline.model.resnet import cifar_resnet20

    assert cifar_resnet20(10, prior_bias=True).fc.bias.sigmoid().tolist() == pytest.approx([1 / 11] * 10)
