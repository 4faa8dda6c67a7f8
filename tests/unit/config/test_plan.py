import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Plan, load, make_plan
from pipeline.errors import ConfigError, WorldError


def plan(world: int, *overrides: str, train: int = 1000) -> Plan:
    return make_plan(load(None, list(overrides)), world_size=world, train_images=train, val_images=100, classes=10)


SMALL = ("schedule.warmup=0ep",)


def test_the_tail_of_an_epoch_is_dropped() -> None:
    found = plan(1, "batch.micro=64", "train.epochs=3", *SMALL)
    assert (found.steps_per_epoch, found.total_steps) == (15, 45)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 8))
def test_any_world_that_divides_computes_the_same_global_batch(world: int, accumulation: int, micro: int) -> None:
    total = world * accumulation * micro
    found = plan(world, f"batch.global={total}", f"batch.micro={micro}", *SMALL)
    assert found.accumulation == accumulation
    assert found.accumulation * found.world_size * found.micro_batch == found.global_batch == total


def test_a_world_that_does_not_divide_is_refused_with_those_that_do() -> None:
    with pytest.raises(WorldError, match=r"6 micro-batches .* 4 processes; start 1, 2, 3 or 6 of them"):
        plan(4, "batch.global=96", "batch.micro=16")


@pytest.mark.parametrize(
    ("world", "keys", "remedy"),
    [
        (16, ("batch.global=2048", "batch.micro=256"), "set batch.micro=128, the largest that fits"),
        (16, ("batch.global=3200", "batch.micro=400"), "set batch.micro=200, the largest that fits"),
        (24, ("batch.global=96", "batch.micro=16"), "set batch.micro=4, the largest that fits"),
        (7, ("batch.global=96", "batch.micro=16"), "set batch.global to a multiple of 7 x batch.micro"),
        (96, ("batch.global=96", "batch.micro=16", "mix.mixup=0.2"), "set batch.global to a multiple of 96 x batch.micro"),
    ],
)
def test_the_refusal_of_a_world_names_the_micro_batch_that_fits(world: int, keys: tuple[str, ...], remedy: str) -> None:
    with pytest.raises(WorldError, match=rf"start .* of them, or {remedy}$"):
        plan(world, *keys, *SMALL)
    if "batch.micro=" in remedy:
        assert plan(world, *keys, remedy.split()[1].rstrip(","), *SMALL, train=99999).accumulation >= 1


def test_auto_scales_with_the_world() -> None:
    assert plan(3, "batch.micro=16", "batch.global=auto", *SMALL).global_batch == 48


def test_the_learning_rate_is_scaled_by_the_global_batch() -> None:
    base = ("batch.global=512", "batch.micro=64", *SMALL)
    assert plan(2, "optim.lr=0.1", "optim.lr_per=256", *base).peak_lr == pytest.approx(0.2)
    assert plan(2, "optim.lr=0.1", "optim.lr_per=null", *base).peak_lr == 0.1


def test_lengths_in_each_unit() -> None:
    found = plan(1, "batch.micro=10", "train.epochs=2", "schedule.warmup=10%")
    assert (found.total_steps, found.warmup_steps) == (200, 20)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (("batch.micro=2000",), "batch.global"),
        (("batch.micro=10", "schedule.warmup=91ep"), "schedule.warmup"),
        (("batch.micro=10", "ema.decay=0.9", "ema.every=9001"), "ema.every"),
        (("batch.micro=10", "train.epochs=0.001"), "train.epochs"),
    ],
)
def test_lengths_that_do_not_fit(overrides: tuple[str, ...], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        plan(1, *overrides)


def test_a_ramp_that_only_the_length_of_an_epoch_shows_to_end_early_is_refused() -> None:
    keys = ("batch.micro=10", "resize.start=32", "resize.begin=2ep", "resize.end=150st", *SMALL)
    with pytest.raises(ConfigError, match=r"resize.end: the ramp ends \(150st, step 150\) before it begins \(2ep, step 200\)"):
        plan(1, *keys)
    assert plan(1, *keys, "resize.end=200st").total_steps == 9000
