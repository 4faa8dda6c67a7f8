from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeline.model.resnet import ResNet, Spec

SMALL = Spec((1, 1), (4, 8), first_kernel_size=3)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def small() -> Callable[..., ResNet]:
    """Make a network of six layers, with 3 classes unless told otherwise."""
    return lambda num_classes=3: ResNet(SMALL, num_classes)


@pytest.fixture
def outputs_of() -> Callable[[nn.Module, list[str], Tensor], dict[str, Tensor]]:
    """Run a network and return what the named sub-modules made."""

    def run(model: nn.Module, names: list[str], x: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        handles = [
            model.get_submodule(name).register_forward_hook(lambda _m, _a, out, name=name: found.__setitem__(name, out))
            for name in names
        ]
        model(x)
        for handle in handles:
            handle.remove()
        return found

    return run
