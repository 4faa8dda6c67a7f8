from dataclasses import asdict

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


def test_device_seconds_add_up_over_worlds() -> None:
    two = Clock(devices=2)
    with two.measure("step_s"):
        pass
    assert two.device_s == 2 * two.total_s
    before = Clock(step_s=10.0, device_s=20.0, devices=2)
    clock = Clock(devices=3).resumed(asdict(before), 2)
    with clock.measure("eval_s"):
        pass
    assert clock.devices == 3 and clock.device_s == pytest.approx(20 + 3 * clock.eval_s)


def test_a_checkpoint_that_is_too_old_to_say_how_many_devices_had_those_of_its_plan() -> None:
    assert Clock(devices=1).resumed({"step_s": 8.0, "eval_s": 2.0}, 4).device_s == 40
