from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.config import Config, Plan, make_plan
from pipeline.data import order

# The seeds are fixed. Uniform numbers come below this once in a thousand choices of seeds, others always.
CHANCE = 1e-3

# Source: Random123, tests/kat_vectors, lines "philox4x32 10".
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_vectors(counter: str, key: str, expected: str) -> None:
    c0, c1, c2, c3 = (np.array([word], np.uint64) for word in words(counter))
    first, second = words(key)
    assert [int(out[0]) for out in order.philox((c0, c1, c2, c3), (first, second))] == words(expected)


def test_draws_are_philox_of_seed_epoch_position_and_stream() -> None:
    c0, c1, c2, c3 = (np.array([word], np.uint64) for word in (5, 1, 2, 7))
    expected = [int(word[0]) / 2**32 for word in order.philox((c0, c1, c2, c3), (3, 4))]
    assert order.draws(np.array([2**32 + 5]), 3, 4, 7, 12)[0, 8:].tolist() == expected


def test_draws_of_a_position_do_not_depend_on_the_others() -> None:
    together = order.draws(np.arange(100), 1, 2, 3, 10)
    assert np.array_equal(order.draws(np.array([41, 7]), 1, 2, 3, 10), together[[41, 7]])
    assert np.array_equal(order.draws(np.arange(100), 1, 2, 3, 5), together[:, :5])


def test_draws_are_uniform_and_uncorrelated_over_every_argument() -> None:
    base = order.draws(np.arange(4096), 1, 2, 3, 8)
    assert base.min() >= 0
    assert base.max() < 1
    assert stats.kstest(base.ravel(), "uniform").pvalue > CHANCE
    others = [(2, 2, 3), (1, 3, 3), (1, 2, 4)]
    for seed, epoch, stream in others:
        other = order.draws(np.arange(4096), seed, epoch, stream, 8)
        assert abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < 0.02
    assert np.abs(np.corrcoef(base.T) - np.eye(8)).max() < 0.06


@given(n=st.integers(1, 5000), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_permute_is_a_bijection(n: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(order.permute(np.arange(n), n, seed, epoch)), np.arange(n))


@pytest.mark.parametrize("n", [1, 2, 3, 97, 101, 127, 128, 129, 1797, 4095, 4096, 4097, 65536])
def test_permute_is_a_bijection_at_awkward_sizes(n: int) -> None:
    assert np.array_equal(np.sort(order.permute(np.arange(n), n, 0, 0)), np.arange(n))


@given(n=st.integers(1, 2**40), seed=st.integers(0, 2**32 - 1), data=st.data())
@settings(max_examples=50, deadline=None)
def test_permute_takes_any_positions_alone(n: int, seed: int, data: st.DataObject) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=9, unique=True)))
    samples = order.permute(positions, n, seed, 5)
    assert len(set(samples.tolist())) == len(positions)
    assert samples.min() >= 0
    assert samples.max() < n
    assert order.permute(positions[-1:], n, seed, 5)[0] == samples[-1]


def test_every_permutation_of_five_is_equally_likely() -> None:
    orders = np.stack([order.permute(np.arange(5), 5, seed, 0) for seed in range(1200)])
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 120
    assert stats.chisquare(counts).pvalue > CHANCE


@pytest.mark.parametrize("by", ["seed", "epoch"])
def test_samples_are_uniform_over_positions_and_neighbours_unrelated(by: str) -> None:
    n = 97
    orders = np.stack([order.permute(np.arange(n), n, *((k, 3) if by == "seed" else (3, k))) for k in range(500)])
    table = np.stack([np.bincount(orders[:, position], minlength=n) for position in range(n)])
    # Rows and columns have fixed sums: (n - 1)^2 degrees of freedom, and a statistic n / (n - 1) times chi-square's.
    statistic = stats.chisquare(table.ravel()).statistic * (n - 1) / n
    assert stats.chi2.sf(statistic, (n - 1) ** 2) > CHANCE
    steps = np.bincount(((orders[:, 1:] - orders[:, :-1]) % n).ravel(), minlength=n)
    assert stats.chisquare(steps[1:]).pvalue > CHANCE
    same_place = (orders[1:] == orders[:-1]).mean() * n  # 1 on average for unrelated orders
    assert 0.9 < same_place < 1.1


def plan_of(config: Callable[..., Config], n: int, world_size: int, *batches: str) -> Plan:
    cfg = config("train.epochs=3", *batches)
    return make_plan(cfg, world_size=world_size, train_images=n, val_images=n, classes=2)


@pytest.mark.parametrize("world_size", range(1, 9))
@pytest.mark.parametrize("n", [97, 101, 1797])
def test_every_image_comes_once_an_epoch_but_for_the_dropped_tail(
    n: int, world_size: int, config: Callable[..., Config]
) -> None:
    plan = plan_of(config, n, world_size, "batch.global=auto", "batch.micro=4")
    tails = []
    for number in range(2):
        parts = [
            order.micro_positions(step, 0, rank=rank, world_size=world_size, plan=plan)
            for step in range(number * plan.steps_per_epoch, (number + 1) * plan.steps_per_epoch)
            for rank in range(world_size)
        ]
        assert {epoch for epoch, _ in parts} == {number}
        seen = order.permute(np.concatenate([positions for _, positions in parts]), n, 9, number).tolist()
        assert len(seen) == len(set(seen)) == n - n % (4 * world_size)
        tails.append(set(range(n)) - set(seen))
    assert len(tails[0]) == n % plan.global_batch
    assert not tails[0] or tails[0] != tails[1]


def test_micro_batches_of_a_step_are_the_same_in_every_world(config: Callable[..., Config]) -> None:
    made_up = []
    for world_size in (1, 2, 3, 4, 6, 12):
        plan = plan_of(config, 101, world_size, "batch.global=36", "batch.micro=3")
        steps = []
        for step in range(5):
            parts = [
                order.micro_positions(step, micro, rank=rank, world_size=world_size, plan=plan)
                for micro in range(plan.accumulation)
                for rank in range(world_size)
            ]
            steps.append([(epoch, positions.tolist()) for epoch, positions in parts])
        made_up.append(steps)
    assert all(other == made_up[0] for other in made_up)
    assert made_up[0][3][0] == (1, [36, 37, 38])


@given(n=st.integers(1, 400), batch=st.integers(1, 70), world_size=st.integers(1, 8))
def test_every_position_is_evaluated_once(n: int, batch: int, world_size: int) -> None:
    dealt = [list(order.eval_positions(n, batch, rank=rank, world_size=world_size)) for rank in range(world_size)]
    positions = [int(position) for rank in dealt for part in rank for position in part]
    assert sorted(positions) == list(range(n))
    assert all(0 < len(part) <= batch for rank in dealt for part in rank)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
