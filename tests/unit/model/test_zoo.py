import subprocess
import sys

import pytest
import torch
import torchvision
from torch import nn

from pipeline.config.schema import Model
from pipeline.errors import ConfigError
from pipeline.model import zoo
from pipeline.model.blocks import Block
from pipeline.model.resnet import PRESETS, ResNet


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.fixture(autouse=True)
def _on_meta() -> object:
    """Build without memory or arithmetic: most of these tests look at shapes alone."""
    with torch.device("meta"):
        yield


def test_every_name_in_the_list_is_accepted() -> None:
    assert set(zoo.names()) == {*PRESETS, "resnet", "timm/NAME"}
    for name in PRESETS:
        zoo.check(Model(name=name))
        assert zoo.spec(Model(name=name)) == PRESETS[name]


def test_keys_can_say_what_a_preset_says() -> None:
    model = Model(name="resnet", n_blocks=(3, 4, 6, 3), n_channels=(256, 512, 1024, 2048), bottlenecks=(64, 128, 256, 512))
    assert shapes(zoo.build(model, 10)) == shapes(torchvision.models.resnet50(num_classes=10))


def test_seeds_own_experiment() -> None:
    keys = Model(name="resnet", n_blocks=(6, 6, 6), n_channels=(16, 32, 64), bottlenecks=(8, 16, 16), first_kernel_size=3)
    with torch.device("cpu"):
        model = zoo.build(keys, 10)
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert [model.get_parameter(f"layer{i}.0.conv2.weight").shape[0] for i in (1, 2, 3)] == [8, 16, 16]


def test_keys_change_a_preset() -> None:
    model = zoo.build(Model(name="resnet18", first_kernel_size=3, shortcut="C", n_blocks=(1, 1, 1, 1)), 4)
    assert isinstance(model, ResNet) and isinstance(model.maxpool, nn.Identity)
    assert model.conv1.weight.shape == (64, 3, 3, 3) and model.fc.out_features == 4
    assert all(isinstance(b.downsample, nn.Sequential) for b in model.modules() if isinstance(b, Block))
    assert len(model.layer1) == 1


def test_plain_has_no_shortcuts() -> None:
    plain, residual = zoo.build(Model(name="resnet34", block="plain"), 10), zoo.build(Model(name="resnet34", block="basic"), 10)
    assert shapes(plain) == {n: s for n, s in shapes(residual).items() if "downsample" not in n}
    assert all(b.downsample is None for b in plain.modules() if isinstance(b, Block))


@pytest.mark.parametrize("zero", [True, False])
def test_initialisation_keys_arrive(zero: bool) -> None:
    with torch.device("cpu"):
        model = zoo.build(Model(name="cifar_resnet20", zero_init_gamma=zero, init="default"), 10)
    assert isinstance(model, ResNet)
    assert bool(model.layer1[0].bn2.weight.any()) != zero
    assert (
        model.layer3[2].conv2.weight.abs().max().item() < 1.001 / (64 * 9) ** 0.5
    )  # PyTorch's uniform bound; a normal has none


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"name": "resnet55"}, ["model.name", "'resnet55'", "did you mean resnet50"]),
        ({"name": "cifar_resnet21"}, ["did you mean", "cifar_resnet20"]),
        ({"name": "efficientnet_b0"}, ["timm/efficientnet_b0"]),
        ({"name": "qqqq"}, ["choose one of resnet18", "timm/NAME"]),
        ({"name": "timm/resnet55"}, ["model.name", "timm/resnet50"]),
        ({"name": "timm/hf-hub:someone/something"}, ["model.name", "unknown to timm"]),
        ({"name": "timm/resnet50.no_such_tag"}, ["model.name", "unknown to timm"]),
        ({"name": "resnet"}, ["model.n_blocks, model.n_channels", "needed"]),
        ({"name": "resnet", "n_blocks": (1,)}, ["model.n_channels: needed"]),
        ({"name": "resnet", "n_blocks": (1, 1), "n_channels": (4,)}, ["n_blocks has 2", "n_channels has 1"]),
        ({"name": "resnet50", "n_blocks": (1, 1)}, ["n_blocks has 2", "n_channels has 4", "bottlenecks has 4"]),
        ({"name": "resnet50", "block": "basic"}, ["model.block", "model.name=resnet50"]),
        ({"name": "resnet18", "block": "plain", "bottlenecks": (1, 1, 1, 1)}, ["model.block", "model.bottlenecks"]),
        ({"name": "resnet18", "block": "bottleneck"}, ["model.block", "model.bottlenecks"]),
        ({"name": "resnet18", "block": "plain", "shortcut": "A"}, ["model.shortcut", "model.block=plain"]),
        (
            {"name": "timm/resnet18", "shortcut": "A", "n_blocks": (1,)},
            ["model.n_blocks, model.shortcut", "add model.n_blocks=null model.shortcut=null"],
        ),
        ({"name": "timm/resnet18", "block": "basic"}, ["model.block", "remove"]),
        ({"name": "timm/resnet18", "init": "default"}, ["model.init", "remove the key, or add model.init=kaiming_fan_out"]),
    ],
)
@pytest.mark.parametrize("entry", [zoo.check, lambda model: zoo.build(model, 10)])
def test_unusable_sections_are_refused_in_one_line(entry: object, keys: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        entry(Model(**keys))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_check_builds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a layer was built")

    monkeypatch.setattr(nn.Module, "__init__", fail)
    zoo.check(Model(name="resnet152"))
    zoo.check(Model(name="timm/resnet50.a1_in1k"))


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_vit.r160_in1k", "timm/mobilenetv3_small_050"])
def test_timm_networks_get_the_classes(name: str) -> None:
    with torch.device("cpu"):
        model = zoo.build(Model(name=name), 7).eval()
        assert model(torch.randn(1, 3, 160, 160)).shape == (1, 7)


def test_timm_networks_start_with_zero_gammas_unless_told_not_to() -> None:
    with torch.device("cpu"):
        zero = zoo.build(Model(name="timm/test_resnet"), 7)
        one = zoo.build(Model(name="timm/test_resnet", zero_init_gamma=False), 7)
    gammas = [n for n, p in zero.named_parameters() if p.ndim == 1 and n.endswith("weight") and not p.any()]
    assert gammas and all((one.get_parameter(n) == 1).all() for n in gammas)


def test_timm_networks_without_that_switch_refuse_it() -> None:
    with torch.device("cpu"), pytest.raises(ConfigError, match="model.zero_init_gamma: timm/test_vit has no such switch"):
        zoo.build(Model(name="timm/test_vit", zero_init_gamma=False), 7)


def test_timm_is_imported_only_when_asked_for() -> None:
    code = """
import sys
from pipeline.config.schema import Model
from pipeline.model import zoo
zoo.build(Model(name="resnet18"), 2)
assert "timm" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
