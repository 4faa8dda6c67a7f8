from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as F

from pipeline.config.schema import Data, Eval
from pipeline.data.index import Index
from pipeline.data.plan import BatchPlan, eval_plan, random_boxes, train_plan

# The seeds are fixed. Equal distributions come below this once in a thousand choices of seeds, different ones always.
CHANCE = 1e-3
Sized = Callable[[list[tuple[int, int]]], Index]


def planned(index: Index, data: Data, n: int, *, seed: int = 0, epoch: int = 0) -> BatchPlan:
    return train_plan(index, data, np.zeros(n, np.int64), np.arange(n), seed=seed, epoch=epoch)


# Sizes at which attempts always fit, sometimes don't, and never do (the fallback).
@pytest.mark.parametrize("size", [(375, 500), (500, 160), (90, 400), (40, 400)])
def test_crops_are_distributed_as_torchvision_s(size: tuple[int, int], sized: Sized) -> None:
    n = 6000
    ours = planned(sized([size]), Data(), n, seed=1).boxes
    canvas = torch.empty(3, *size)
    torch.manual_seed(1)
    theirs = np.array([RandomResizedCrop.get_params(canvas, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)])
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > CHANCE
    assert np.allclose(ours.mean(axis=0), theirs.mean(axis=0), rtol=0.06, atol=1.5)
    assert np.allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.08, atol=1.5)


def test_a_box_is_torchvision_s_arithmetic_on_our_numbers() -> None:
    numbers = np.array([[[1.0, 1.0, 0.0, 0.0], [0.25, 0.5, 0.5, 0.999]]])
    # The first attempt is too wide. The second: area 0.31 * 200 * 100, aspect 1 -> 78.74 rounds to 79.
    box = random_boxes(np.array([100]), np.array([200]), numbers, (0.08, 1.0), (0.75, 4 / 3))
    assert box.tolist() == [[11, 121, 79, 79]]


@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    scale=st.tuples(st.floats(0.01, 0.5), st.floats(0.5, 1)),
    ratio=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(lambda pair: (min(pair), max(pair))),
)
@settings(max_examples=150, deadline=None)
def test_crops_lie_inside_the_image(height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    numbers = np.random.default_rng(height * width).random((64, 10, 4))
    heights, widths = np.full(64, height), np.full(64, width)
    top, left, box_h, box_w = random_boxes(heights, widths, numbers, scale, ratio).T
    assert (box_h >= 1).all()
    assert (box_w >= 1).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + box_h <= height).all()
    assert (left + box_w <= width).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 977), (977, 1), (2, 500), (300, 900), (900, 300)])
def test_fallback_is_torchvision_s(size: tuple[int, int]) -> None:
    never = np.full((1, 10, 4), 0.5)
    ours = random_boxes(np.array([size[0]]), np.array([size[1]]), never, (1.0, 1.0), (0.9, 1.1))
    theirs = RandomResizedCrop.get_params(torch.empty(3, *size), [1.0, 1.0], [0.9, 1.1])
    assert tuple(ours[0]) == theirs


def test_plans_depend_on_seed_epoch_and_position_alone(sized: Sized) -> None:
    index, data = sized([(375, 500)]), Data()
    whole = planned(index, data, 50)
    part = train_plan(index, data, np.zeros(2, np.int64), np.array([30, 4]), seed=0, epoch=0)
    assert np.array_equal(part.boxes, whole.boxes[[30, 4]])
    assert np.array_equal(part.flip, whole.flip[[30, 4]])
    for other in (planned(index, data, 50, seed=1), planned(index, data, 50, epoch=1)):
        assert (other.boxes != whole.boxes).any(axis=1).all()


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_flips_have_their_probability_and_nothing_to_do_with_crops(probability: float, sized: Sized) -> None:
    plan = planned(sized([(375, 500)]), Data(flip=probability), 4000)
    assert abs(plan.flip.mean() - probability) < 0.03
    if 0 < probability < 1:
        assert abs(np.corrcoef(plan.flip, plan.boxes[:, 2])[0, 1]) < 0.05


def test_training_plan_has_the_declared_types(sized: Sized) -> None:
    plan = planned(sized([(375, 500)]), Data(resolution=160), 5)
    arrays = (plan.ids, plan.labels, plan.boxes, plan.resized, plan.offsets, plan.flip)
    assert [array.dtype.name for array in arrays] == ["int64", "int64", "int32", "int32", "int32", "bool"]
    assert (len(plan), plan.size, plan.resized.tolist()) == (5, 160, [[160, 160]] * 5)


@given(height=st.integers(20, 700), width=st.integers(20, 700), resize=st.integers(1, 120), share=st.floats(0.1, 1))
@settings(max_examples=200, deadline=None)
def test_evaluation_geometry_is_torchvision_s(height: int, width: int, resize: int, share: float, sized: Sized) -> None:
    crop = max(1, int(resize * share))
    plan = eval_plan(sized([(height, width)]), Eval(resize=resize, crop=crop), np.array([0]))
    columns, rows = F.resize(Image.new("L", (width, height)), resize).size
    assert plan.resized.tolist() == [[rows, columns]]
    # The first pixel of a square cut from an image of pixel numbers says where it was cut.
    numbered = Image.fromarray(np.arange(rows * columns, dtype=np.int32).reshape(rows, columns))
    assert plan.offsets[0].tolist() == list(divmod(F.center_crop(numbered, crop).getpixel((0, 0)), columns))
    assert plan.boxes.tolist() == [[0, 0, height, width]]
    assert not plan.flip.any()
