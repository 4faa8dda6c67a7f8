import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.model import resnet
from pipeline.model.blocks import Block
from pipeline.model.resnet import PRESETS, ResNet, ResNetBase, Spec

IMAGENET = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """Build a network without memory or arithmetic, to look at its shapes."""
    with torch.device("meta"):
        return make()


@pytest.mark.parametrize("name", IMAGENET)
def test_weights_and_outputs_are_torchvisions(name: str) -> None:
    theirs, ours = getattr(torchvision.models, name)(), getattr(resnet, name)()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.train()(x), theirs.train()(x), rtol=0, atol=1e-5)
        # What the forward pass has just done to running means, variances and batch counts.
        for mine, other in zip(ours.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=0, atol=1e-5)

        fresh = getattr(resnet, name)(zero_init_gamma=False).eval()
        assert not torch.equal(fresh.conv1.weight, theirs.conv1.weight)
        theirs.load_state_dict(fresh.state_dict(), strict=True)
        expected = theirs(x)
        torch.testing.assert_close(fresh(x), expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_gradients_are_torchvisions(name: str) -> None:
    theirs, ours = getattr(torchvision.models, name)(num_classes=5).double(), getattr(resnet, name)(num_classes=5).double()
    ours.load_state_dict(theirs.state_dict())
    x, target = torch.randn(2, 3, 64, 64, dtype=torch.float64), torch.tensor([1, 3])
    for model in (ours, theirs):
        nn.functional.cross_entropy(model(x), target).backward()
    for (name_, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-6, atol=1e-9, msg=lambda m, n=name_: f"{n}: {m}")


@pytest.mark.parametrize("name", PRESETS)
def test_depth_is_the_number_in_the_name(name: str) -> None:
    model = on_meta(getattr(resnet, name))
    weighted = [
        n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "downsample" not in n
    ]  # the paper does not count projections
    assert len(weighted) == int(name.removeprefix("cifar_").removeprefix("resnet"))
    assert not any(isinstance(m, nn.Conv2d) and m.bias is not None for m in model.modules())


@pytest.mark.parametrize(
    ("depth", "millions", "digits"), [(20, 0.27, 2), (32, 0.46, 2), (44, 0.66, 2), (56, 0.85, 2), (110, 1.7, 1)]
)
def test_cifar_parameter_counts_are_the_papers(depth: int, millions: float, digits: int) -> None:
    """Table 6 of the paper."""
    model = on_meta(getattr(resnet, f"cifar_resnet{depth}"))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, digits) == millions
    assert model.fc.out_features == 10


@pytest.mark.parametrize(
    ("name", "pixels", "maps"),
    [
        ("resnet18", 224, {"conv1": 112, "maxpool": 56, "layer1": 56, "layer2": 28, "layer3": 14, "layer4": 7}),
        ("resnet50", 224, {"conv1": 112, "maxpool": 56, "layer1": 56, "layer2": 28, "layer3": 14, "layer4": 7}),
        ("cifar_resnet20", 32, {"conv1": 32, "maxpool": 32, "layer1": 32, "layer2": 16, "layer3": 8}),
    ],
)
def test_feature_maps_halve_as_in_the_paper(
    name: str, pixels: int, maps: dict[str, int], outputs_of: Callable[..., dict]
) -> None:
    with torch.device("meta"):
        found = outputs_of(getattr(resnet, name)(), list(maps), torch.randn(1, 3, pixels, pixels))
    assert {name: out.shape[-1] for name, out in found.items()} == maps


def test_bottleneck_stride_is_on_the_3x3() -> None:
    strides = {
        n: m.stride for n, m in on_meta(resnet.resnet50).named_modules() if isinstance(m, nn.Conv2d) and m.stride != (1, 1)
    }
    assert set(strides) == {"conv1", *(f"layer{i}.0.{n}" for i in (2, 3, 4) for n in ("conv2", "downsample.0"))}


specs = st.integers(1, 4).flatmap(
    lambda stages: st.builds(
        Spec,
        n_blocks=st.tuples(*[st.integers(1, 2)] * stages),
        n_channels=st.lists(st.integers(3, 6), min_size=stages, max_size=stages).map(sorted),
        bottlenecks=st.none() | st.tuples(*[st.integers(1, 3)] * stages),
        img_channels=st.integers(1, 4),
        first_kernel_size=st.sampled_from([3, 7]),
        shortcut=st.sampled_from(["A", "B", "C", None]),
        init=st.sampled_from(["kaiming_fan_out", "kaiming_fan_in", "default"]),
        zero_init_gamma=st.booleans(),
    )
)


@settings(deadline=None, max_examples=40)
@given(spec=specs, height=st.integers(1, 70), width=st.integers(1, 70))
def test_any_spec_takes_any_size(spec: Spec, height: int, width: int) -> None:
    model = ResNet(spec, num_classes=5).double().eval()
    images = torch.randn(2, spec.img_channels, height, width, dtype=torch.float64)
    maps = images
    for name, module in model.named_children():
        if name.startswith("layer"):
            halvings = (2 if spec.first_kernel_size == 7 else 0) + int(name.removeprefix("layer")) - 1
            maps = module(maps)
            assert maps.shape[2:] == (math.ceil(height / 2**halvings), math.ceil(width / 2**halvings))
            assert len(module) == spec.n_blocks[int(name.removeprefix("layer")) - 1]
        elif name != "fc":
            maps = module(maps).relu() if name == "bn1" else module(maps)
    features = model.features(images)
    torch.testing.assert_close(features, maps.mean((2, 3)))
    assert features.shape == (2, model.n_features) and features.dtype == torch.float64
    assert torch.equal(model(images), model.fc(features))


@pytest.mark.parametrize(
    ("shortcut", "projected"),
    [
        ("A", set()),
        ("B", {"layer2.0", "layer3.0"}),
        ("C", {f"layer{i}.{j}" for i in (1, 2, 3) for j in (0, 1, 2)}),
        (None, set()),
    ],
)
def test_options_say_which_blocks_project(shortcut: str | None, projected: set[str]) -> None:
    model = resnet.cifar_resnet20(shortcut=shortcut)
    assert {n.partition(".downsample")[0] for n in model.state_dict() if "downsample" in n} == projected
    blocks = [m for m in model.modules() if isinstance(m, Block)]
    assert len(blocks) == 9 and all((b.downsample is None) == (shortcut is None) for b in blocks)


@pytest.mark.parametrize(("shortcut", "zero", "gamma"), [("A", True, 0), ("B", True, 0), ("B", False, 1), (None, True, 1)])
def test_last_gammas_start_at_zero_where_a_shortcut_passes_by(shortcut: str | None, zero: bool, gamma: int) -> None:
    model = resnet.resnet18(shortcut=shortcut, zero_init_gamma=zero)
    last = {f"{n}.bn2" for n, m in model.named_modules() if isinstance(m, Block)}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == (gamma if name in last else 1)).all(), name
            assert not module.bias.any()


def test_zero_gammas_pass_the_stem_through_the_network() -> None:
    """With option A and all residuals zero, the features are the stem's output, subsampled, and zeros."""
    model, images = resnet.cifar_resnet32().eval(), torch.randn(2, 3, 32, 32)
    stem = model.bn1(model.conv1(images)).relu()[:, :, ::4, ::4].mean((2, 3))
    torch.testing.assert_close(model.features(images), torch.cat([stem, torch.zeros(2, 48)], 1))


@pytest.mark.parametrize("init", ["kaiming_fan_out", "kaiming_fan_in", "default"])
def test_initial_weights_have_the_spread_they_should(init: str) -> None:
    checked = 0
    for module in resnet.resnet18(init=init).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 30_000:
            n_out, n_in, height, width = module.weight.shape
            # PyTorch's default is uniform within 1/sqrt(fan in), of which the standard deviation is 1/sqrt(3) of that.
            std = {
                "kaiming_fan_out": math.sqrt(2 / (n_out * height * width)),
                "kaiming_fan_in": math.sqrt(2 / (n_in * height * width)),
                "default": 1 / math.sqrt(3 * n_in * height * width),
            }[init]
            assert module.weight.std().item() == pytest.approx(std, rel=0.02)
            assert module.weight.mean().item() == pytest.approx(0, abs=0.02 * std)
            checked += 1
    assert checked == 18


def test_base_is_the_classifier_without_its_head() -> None:
    classifier = resnet.cifar_resnet20(num_classes=7).eval()
    base = ResNetBase(PRESETS["cifar_resnet20"]).eval()
    base.load_state_dict({n: t for n, t in classifier.state_dict().items() if not n.startswith("fc.")}, strict=True)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(base(images), classifier.features(images))
    assert base(images).shape == (2, base.n_features) == (2, 64)


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_channels_last_stays_and_changes_nothing(shortcut: str, outputs_of: Callable[..., dict[str, Tensor]]) -> None:
    model, images = resnet.cifar_resnet20(shortcut=shortcut).eval(), torch.randn(2, 3, 32, 32)
    expected = model(images)
    model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    found = outputs_of(model, ["conv1", "layer1", "layer2", "layer2.0", "layer3"], images)
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in found.values())
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["cifar_resnet20", "resnet50"])
def test_compiles_into_one_graph(name: str) -> None:
    model, images = getattr(resnet, name)().eval(), torch.randn(2, 3, 32, 32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_blocks": (1, 1, 1)}, ["model.n_blocks", "n_blocks has 3", "n_channels has 2"]),
        ({"bottlenecks": (2,)}, ["n_blocks has 2", "n_channels has 2", "bottlenecks has 1"]),
        ({"n_blocks": (), "n_channels": ()}, ["model.n_blocks: must be a list", "model.n_channels: must be a list"]),
        ({"bottlenecks": ()}, ["model.bottlenecks: must be a list", "bottlenecks has 0"]),
        ({"n_channels": (4, 0)}, ["model.n_channels", "[4, 0]"]),
        ({"first_kernel_size": 5, "img_channels": 0}, ["model.first_kernel_size: must be 7", "not 5", "model.img_channels"]),
        ({"n_channels": (8, 4), "shortcut": "A"}, ["model.shortcut", "[8, 8, 4]", "use B"]),
        ({"bottlenecks": (5, 1), "shortcut": "A"}, ["model.shortcut", "[5, 4, 8]"]),
    ],
)
def test_unusable_specs_are_refused_by_name(changes: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(Spec((1, 1), (4, 8)), **changes)
    assert all(word in str(caught.value) for word in words)
    assert all(line.startswith("model.") for line in str(caught.value).splitlines())
