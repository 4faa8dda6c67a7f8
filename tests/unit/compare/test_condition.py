import pytest

from pipeline.compare.condition import parse
from pipeline.errors import UsageError

RUN = {"val/top1": 0.700, "val/loss": 2.0, "best:val/top1": 0.72, "seconds": 50.0, "target:seconds": 40.0}
BASE = {"val/top1": 0.704, "val/loss": 1.0, "best:val/top1": 0.71, "seconds": 100.0, "target:seconds": 50.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("val/top1 < baseline - 0.3%", True),
        ("val/top1 < baseline - 0.5%", False),
        ("val/top1<baseline-0.003", True),
        ("val/top1 < 70.1%", True),
        ("val/top1 >= 0.7", True),
        ("baseline - 0.3% > val/top1", True),
        ("val/loss > 1.5 * baseline", True),
        ("val/loss == 2 and val/top1 == baseline", False),
        ("val/loss == 2 or val/top1 == baseline", True),
        ("best:val/top1 < baseline", False),
        ("seconds / 2 > 1e1 + 2 * (3 + 4)", True),
        ("-val/loss <= -2.0", True),
        ("target:seconds != baseline", True),
        ("1 - 2 - 3 < val/loss - 5", True),
        ("1 - 2 - 3 == val/loss - 6", True),
        ("val/top1 < 2 or val/top1 < 0 and val/top1 < 0", True),
        ("val/top1 < 0 and val/top1 < 0 or val/top1 < 2", True),
    ],
)
def test_conditions(text, expected):
    assert parse(text).holds(RUN.__getitem__, BASE.__getitem__) is expected


def test_names_are_those_of_the_text():
    assert parse("val/top1 < baseline and val/loss > 1 or val/top1 > 2").names == ("val/top1", "val/loss")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a number, a metric or 'baseline', found the end"),
        ("val/top1", "expected one of < <= > >= == !=, found the end"),
        ("val/top1 < ", "expected a number, a metric or 'baseline', found the end"),
        ("val/top1 < (1 + 2", "expected '\\)', found the end"),
        ("val/top1 < 1 2", "expected an end, 'and' or 'or', found '2'"),
        ("1 < 2", "names no metric"),
        ("baseline < 2", "expected a number, a metric or 'baseline', found 'baseline'"),
        ("val/top1 < __import__('os')", "can't read .*'os'"),
        ("val/top1 < $x", "can't read '\\$x'"),
        ("val/top1 = 3", "can't read '= 3'"),
        ("(" * 3000, "more than 50 brackets"),
    ],
)
def test_what_is_no_condition_is_refused_in_one_line(text, said):
    with pytest.raises(UsageError, match=said) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_what_is_not_a_number_never_passes():
    never = {"target:seconds": float("inf")}
    with pytest.raises(UsageError, match="compares what is not a number"):
        parse("target:seconds - baseline > 10").holds(never.__getitem__, never.__getitem__)
