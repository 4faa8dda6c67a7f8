import pytest

from pipeline.train.clock import Clock


def test_rates_are_of_training_time_alone() -> None:
    clock = Clock(step_s=8.0, data_s=2.0, eval_s=5.0, save_s=1.0, images=500)
    assert clock.rates() == {"images_per_s": 50.0, "data_wait": 0.2}
    assert (clock.train_s, clock.total_s) == (10.0, 16.0)


def test_since_an_earlier_copy() -> None:
    clock = Clock(images=10)
    before = clock.copy()
    with clock.measure("eval_s"):
        pass
    clock.images += 5
    found = clock.since(before)
    assert found.images == 5 and found.eval_s == clock.eval_s > 0 and before.eval_s == 0


def test_time_is_counted_when_the_block_fails() -> None:
    clock = Clock()
    with pytest.raises(KeyError), clock.measure("data_s"):
        raise KeyError
    assert clock.data_s > 0


def test_no_time_yet_is_no_division_by_zero() -> None:
    assert Clock().rates() == {"images_per_s": 0.0, "data_wait": 0.0}
