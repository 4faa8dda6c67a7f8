"""The training order: fully shuffled, or in shuffled runs of neighbouring samples for disks that dislike jumping about."""

import numpy as np

from pipeline.config.schema import Data
from pipeline.data import order
from pipeline.data.index import Index
from pipeline.data.order import Ints

_SEEN = 4096  # samples whose sizes tell the others'; they lie shuffled in a pack
_MOST_AHEAD = 1 << 30  # bytes that a rank asks for at once


def samples_at(index: Index, data: Data, positions: Ints, *, seed: int, epoch: int) -> Ints:
    """Return int64[B]: the samples that stand at `positions` (int64[B]) of an epoch."""
    n = len(index)
    if data.order == "full":
        return order.permute(positions, n, seed, epoch)
    places = block_places(positions, n, (data.block, data.window), seed=seed, epoch=epoch)
    return index.shards.order[places].astype(np.int64) if index.shards else places


def window_batches(index: Index, data: Data, batch: int, world_size: int) -> int:
    """Return how many of a rank's batches a window lasts, and at least one; no more than hold `_MOST_AHEAD` bytes.

    So many are read ahead at once: the samples that the ranks of a node ask for make up whole runs of neighbours.
    """
    if index.shards is None:
        return 1
    sample = max(1, int(index.shards.lengths[:_SEEN].mean()))
    images = min(data.block * data.window // world_size, len(index) // world_size, _MOST_AHEAD // sample)
    return max(1, images // batch)


def block_places(positions: Ints, n: int, sizes: tuple[int, int], *, seed: int, epoch: int) -> Ints:
    """Return int64[B]: which of `n` places on the disk are read at `positions` of an epoch.

    The places, turned by a random amount, are cut into blocks of `sizes[0]`; the blocks are shuffled, and within each
    window of `sizes[1]` following blocks all places are shuffled. What is left over by the last block comes last: other
    places each epoch. A bijection of `range(n)`, computed for any positions alone.
    """
    block = min(sizes[0], n)
    n_blocks = n // block
    window = block * min(sizes[1], n_blocks)
    turn = int(order.draws(np.zeros(1, np.int64), seed, epoch, order.Stream.ROTATE, 1)[0, 0] * n)
    places = np.array(positions, np.int64)
    inside = np.flatnonzero(places < n_blocks * block)
    numbers = places[inside] // window
    for number in np.unique(numbers).tolist():
        mine = inside[numbers == number]
        first = number * window
        length = min(window, n_blocks * block - first)
        key = order.draws(np.array([number]), seed, epoch, order.Stream.WINDOW, 2)[0] * 2**32
        places[mine] = first + order.permute(places[mine] - first, length, int(key[0]), int(key[1]))
    shuffled = order.permute(places[inside] // block, n_blocks, seed, epoch)
    places[inside] = shuffled * block + places[inside] % block
    return (places + turn) % n
