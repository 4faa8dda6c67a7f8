"""The graph's construction and inputs; its results are in test_executors."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config.schema import Eval
from pipeline.data.batch import Job
from pipeline.data.dali import Feed, Place, build_graph
from pipeline.data.index import Index, open_index
from pipeline.data.plan import eval_plan


@pytest.fixture
def index(images: Path, cache: Path) -> Index:
    return open_index(images, "val", cache)


def placed(serialized: bytes) -> dict[str, str]:
    """Return each operator's device from a serialized graph, a protocol buffer that begins an operator with its name."""
    names = rb"decoders__ImageSlice|io__file__Read|ExternalSource|Resize|Flip"
    found = re.findall(rb"\n.(" + names + rb")[\x12\x1a].*?\x06device\x12\x06string\*.(cpu|gpu|mixed)", serialized, re.DOTALL)
    return {name.decode(): device.decode() for name, device in found}


HOST = {"ExternalSource": "cpu", "io__file__Read": "cpu"}
PLACES: list[tuple[Place, dict[str, str]]] = [
    ("cpu", {**HOST, "decoders__ImageSlice": "cpu", "Resize": "cpu", "Flip": "cpu"}),
    ("gpu", {**HOST, "decoders__ImageSlice": "mixed", "Resize": "gpu", "Flip": "gpu"}),
]


@pytest.mark.parametrize(("place", "expected"), PLACES)
def test_operators_stand_where_they_should(place: Place, expected: dict[str, str], index: Index) -> None:
    job = Job(index, lambda first: iter(()), 4, torch.device("cpu"), 1, 2)
    serialized = build_graph(job, Feed(index), "bilinear", place).serialize()
    assert placed(serialized) == expected
    assert (b"hw_decoder_load" in serialized) == (b"jpeg_fancy_upsampling" in serialized) == (place == "gpu")
    assert b"adjust_orientation" in serialized


def test_a_plan_is_fed_as_arrays_and_remembered(index: Index) -> None:
    ids = np.array([0, 3])
    plan = eval_plan(index, Eval(resize=150, crop=100), ids)  # of images of 500 x 375 and 301 x 257
    feed = Feed(index)
    feed.start(iter([plan]))
    paths, start, shape, roi_start, roi_end, size, flip = feed()
    assert [os.fsdecode(row.tobytes().rstrip(b"\0")) for row in paths] == [str(index.path(sample)) for sample in (0, 3)]
    assert start.tolist() == [[0, 0], [0, 0]]
    assert shape.tolist() == [[375, 500], [257, 301]]
    assert roi_start[0].tolist() == pytest.approx([25 * 2.5, 50 * 2.5])
    assert roi_end[0].tolist() == pytest.approx([125 * 2.5, 150 * 2.5])
    assert size.tolist() == [[100, 100], [100, 100]]
    assert flip.tolist() == [0, 0]
    assert list(feed.pending) == [plan]
    with pytest.raises(StopIteration):
        feed()
