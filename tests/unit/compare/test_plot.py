import numpy as np

from pipeline.compare.plot import draw


def test_two_lines_that_cross():
    x = np.array([0.0, 10.0])
    assert draw([(x, x), (x, 10 - x)], width=5, height=5) == (
        "10 |b   a\n"
        "   | b a\n"
        " 5 |  *\n"
        "   | a b\n"
        " 0 |a   b\n"
        "   +-----\n"
        "    0  10"
    )  # fmt: skip


def test_points_that_are_not_finite_are_left_out():
    x, y = np.array([1.0, 2.0, np.nan]), np.array([3.0, np.inf, 1.0])
    drawn = draw([(x, y), (x[:0], x[:0])], width=20, height=3)
    assert drawn.count("a") == 1 and "b" not in drawn
    assert draw([(x[:0], y[:0])]) == "" and draw([]) == ""
