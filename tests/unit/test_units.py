import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import units
from pipeline.units import Duration


@pytest.mark.parametrize(
    ("text", "steps"),
    [("90ep", 900), ("2.5ep", 25), ("500st", 500), ("10%", 30), (3, 30), ("0.25ep", 3), (" 7 st ", 7), ("0ep", 0)],
)
def test_durations_become_steps(text: str, steps: int) -> None:
    assert Duration.parse(text).steps(steps_per_epoch=10, total_steps=300) == steps


@pytest.mark.parametrize("text", ["", "x", "-1ep", "3 weeks", "1.5st", "1e3", "ep", "10%%"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration|whole"):
        Duration.parse(text)


def test_a_share_of_an_unknown_whole_is_refused() -> None:
    with pytest.raises(ValueError, match="percentage"):
        Duration.parse("10%").steps(10)


@given(st.integers(0, 10**6), st.sampled_from(["ep", "st", "%"]))
def test_text_round_trip(value: int, unit: units.Unit) -> None:
    assert Duration.parse(str(Duration(float(value), unit))) == Duration(float(value), unit)


@given(st.integers(1, 5000), st.integers(1, 300))
def test_whole_epochs_are_exact(steps_per_epoch: int, epochs: int) -> None:
    assert Duration.parse(f"{epochs}ep").steps(steps_per_epoch) == epochs * steps_per_epoch


def test_texts_for_people() -> None:
    assert [units.seconds(s) for s in (7.31, 59.96, 245, 7380)] == ["7.3s", "60.0s", "4m05s", "2h03m"]
    assert [units.size(n) for n in (12, 102_400, 2**30)] == ["12 B", "100.0 KiB", "1.0 GiB"]
    assert [units.count(1, "image"), units.count(1_281_167, "image"), units.count(2, "class", "classes")] == [
        "1 image",
        "1,281,167 images",
        "2 classes",
    ]


def test_what_is_done_every_part_of_an_epoch_does_not_drift() -> None:
    """Half of 89 steps is not 45: that would be 90 and 180, never an epoch's end."""
    found = [step for step in range(1, 268) if Duration.parse("0.5ep").falls_on(step, 89, 267)]
    assert found == [45, 89, 134, 178, 223, 267]
    assert [step for step in range(268) if Duration.parse("10%").falls_on(step, 89, 267)][-1] == 267
    assert [step for step in range(10) if Duration.parse("3st").falls_on(step, 89, 267)] == [3, 6, 9]
    assert all(Duration.parse("0.01ep").falls_on(step, 89, 267) for step in range(1, 20))
    assert not Duration.parse("0.01ep").falls_on(0, 89, 267) and not Duration.parse("1ep").falls_on(0, 89, 267)


@given(st.integers(1, 700), st.integers(1, 8), st.integers(1, 6))
def test_every_epoch_ends_with_what_is_done_every_nth_of_one(steps: int, parts: int, epochs: int) -> None:
    interval, total = Duration(1 / parts, "ep"), epochs * steps
    due = [step for step in range(1, total + 1) if interval.falls_on(step, steps, total)]
    assert {steps * n for n in range(1, epochs + 1)} <= set(due) and len(due) == min(parts * epochs, total)


def test_a_share_of_the_training_needs_a_common_unit() -> None:
    whole = Duration.parse("90ep")
    assert [Duration.parse(text).share_of(whole) for text in ("45ep", "10%", "100st")] == [0.5, 0.1, None]
