import copy

import pytest
import torch
from torch import Tensor, nn

from pipeline.train.batchnorm import StepStatistics
from pipeline.world import World


class Together(World):
    """A world whose sum is taken over the statistics of others that are handed in."""

    others: list[Tensor]

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor.add_(torch.stack(self.others).sum(0)) if self.others else tensor


def world_of(size: int, others: list[Tensor]) -> Together:
    world = Together(size=size)
    object.__setattr__(world, "others", others)
    return world


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4, momentum=0.3)
    ).double()


def steps(count: int, micros: int) -> list[list[Tensor]]:
    return [[torch.randn(6, 3, 8, 8, dtype=torch.float64) * (s + 1) + m for m in range(micros)] for s in range(count)]


def test_one_pass_a_step_is_what_the_layers_do_by_themselves() -> None:
    data, plain, ours = steps(5, 1), net(), net()
    statistics = StepStatistics(ours)
    statistics.start_training()
    for (images,) in data:
        plain(images)
        ours(images)
        statistics.after_pass()
        statistics.after_step(World())
    statistics.end_training()
    for a, b in zip(plain.buffers(), ours.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert [m.momentum for m in ours if isinstance(m, nn.BatchNorm2d)] == [0.1, 0.3]


def test_averages_move_once_a_step_by_the_mean_over_passes() -> None:
    """Against the definition: average <- (1 - momentum) average + momentum mean(statistics of the passes)."""
    images = steps(1, 3)[0]
    model = net()
    statistics = StepStatistics(model)
    statistics.start_training()
    for one in images:
        model(one)
        statistics.after_pass()
    statistics.after_step(World())
    statistics.end_training()
    features = [model[0](one) for one in images]
    mean = torch.stack([f.mean((0, 2, 3)) for f in features]).mean(0)
    var = torch.stack([f.var((0, 2, 3)) for f in features]).mean(0)
    layer = model[1]
    assert isinstance(layer, nn.BatchNorm2d)
    torch.testing.assert_close(layer.running_mean, 0.1 * mean)
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * var)


def train_alone(data: list[list[Tensor]]) -> nn.Module:
    model = net()
    statistics = StepStatistics(model)
    statistics.start_training()
    for images in data:
        for one in images:
            model(one)
            statistics.after_pass()
        statistics.after_step(World())
    statistics.end_training()
    return model


def train_shared(data: list[list[Tensor]], size: int) -> list[nn.Module]:
    ranks = [net() for _ in range(size)]
    each = [StepStatistics(model) for model in ranks]
    for statistics in each:
        statistics.start_training()
    for images in data:
        for rank, model in enumerate(ranks):
            for one in images[rank::size]:
                model(one)
                each[rank].after_pass()
        sums = [statistics._sum.clone() for statistics in each]
        for rank, statistics in enumerate(each):
            statistics.after_step(world_of(size, sums[:rank] + sums[rank + 1 :]))
    for statistics in each:
        statistics.end_training()
    return ranks


@pytest.mark.parametrize("size", [2, 4])
def test_the_averages_do_not_depend_on_who_did_which_pass(size: int) -> None:
    data = steps(3, 4)
    alone = train_alone(data).state_dict()
    for model in train_shared(data, size):
        for name, value in model.state_dict().items():
            if "running" in name:
                torch.testing.assert_close(value, alone[name], rtol=1e-12, atol=1e-12)


def test_settling_in_between_changes_nothing() -> None:
    data = steps(4, 2)
    results = []
    for settle in (False, True):
        model = net()
        statistics = StepStatistics(model)
        statistics.start_training()
        for images in data:
            for one in images:
                model(one)
                statistics.after_pass()
            statistics.after_step(World())
            if settle:
                with statistics.settled():
                    model.eval()
                    model(images[0])
                    model.train()
        statistics.end_training()
        results.append(copy.deepcopy(model.state_dict()))
    assert all(results[0][k].equal(results[1][k]) for k in results[0] if "running" in k)


def test_a_network_without_batch_norm() -> None:
    statistics = StepStatistics(nn.Linear(2, 2))
    statistics.start_training()
    statistics.after_pass()
    statistics.after_step(World())
    statistics.end_training()
