"""The order in blocks: a bijection for any positions alone, local on the disk, and well mixed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.blocks import block_places
from pipeline.data.order import permute


@given(n=st.integers(1, 1500), block=st.integers(1, 100), window=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_blocks_are_a_bijection_of_any_positions_alone(n: int, block: int, window: int, seed: int) -> None:
    places = block_places(np.arange(n), n, (block, window), seed=seed, epoch=3)
    assert np.array_equal(np.sort(places), np.arange(n))
    some = np.array([n - 1, 0, n // 2])
    assert np.array_equal(block_places(some, n, (block, window), seed=seed, epoch=3), places[some])


def test_blocks_differ_between_epochs_and_seeds() -> None:
    base = block_places(np.arange(5000), 5000, (10, 20), seed=1, epoch=1)
    for seed, epoch in ((1, 2), (2, 1)):
        assert (block_places(np.arange(5000), 5000, (10, 20), seed=seed, epoch=epoch) == base).mean() < 0.01


def test_blocks_read_whole_runs_within_a_window() -> None:
    n, block, window = 64_000, 64, 20
    places = block_places(np.arange(n), n, (block, window), seed=0, epoch=0)
    for start in range(0, n, block * window):
        near = np.sort(places[start : start + block * window])
        runs = 1 + int((np.diff(near) != 1).sum())
        assert runs <= window + 1  # the places are turned, so that one run may go over the end


@pytest.mark.parametrize("window", [64, 256])
@pytest.mark.parametrize("shuffled", [True, False])
def test_blocks_mix_classes_as_documented(window: int, shuffled: bool) -> None:
    """The variance of batches' class counts, as a multiple of a full shuffle's: 1 + batch / window, and 1 in a pack."""
    n, classes, batch = 128_000, 100, 256
    labels = np.arange(n) // (n // classes)  # a folder, sorted by class
    labels = labels[permute(np.arange(n), n, 0, 0)] if shuffled else labels
    places = block_places(np.arange(n), n, (64, window), seed=0, epoch=0)
    counts = [np.bincount(part, minlength=classes) for part in labels[places].reshape(-1, batch)]
    unevenness = np.var(counts, axis=1).mean() / (batch / classes * (1 - 1 / classes))
    assert unevenness == pytest.approx(1.0 if shuffled else 1 + batch / window, rel=0.1)


def test_blocks_drop_no_place_more_often_than_others() -> None:
    n, kept = 1003, 960  # the tail of an epoch that does not fill a batch is dropped
    lost = np.zeros(n)
    for epoch in range(150):
        lost[block_places(np.arange(kept, n), n, (10, 5), seed=4, epoch=epoch)] += 1
    assert lost.max() < 150 * (n - kept) / n + 6 * np.sqrt(150 * (n - kept) / n)
