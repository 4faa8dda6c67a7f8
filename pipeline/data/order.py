"""Which sample stands at a position of the training order: counter-based random numbers and a keyed permutation."""

import math
from collections.abc import Iterator
from enum import IntEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Plan

Ints: TypeAlias = NDArray[np.int64]
Words: TypeAlias = NDArray[np.uint64]
"""Unsigned 32-bit words, held in 64 bits so that products do not overflow."""


class Stream(IntEnum):
    """What random numbers are for: the streams are independent of each other. A number that was given once never changes."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    AUGMENT = 3
    ERASE = 4
    MIX = 5
    REPLACE = 1 << 16
    """What stands in for a bad image."""
    ROTATE = (1 << 16) + 1
    """Where the first block of an epoch starts on the disk."""
    WINDOW = (1 << 16) + 2
    """The keys of the orders within windows of blocks."""
    PACK = (1 << 16) + 3
    """The order of a pack's samples on the disk."""


# Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.3; constants of Random123.
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)

# Ten rounds are the fewest at which permutations of five items were uniform over 6,000 seeds; two are added as a margin.
_FEISTEL_ROUNDS = 12


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Return Philox-4x32-10 of four arrays of 32-bit words, which broadcast against each other, and a key of two.

    Source: Salmon et al. (SC 2011), section 3.3.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(10):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1 = (product1 >> _32) ^ c1 ^ k0, product1 & _LOW
        c2, c3 = (product0 >> _32) ^ c3 ^ k1, product0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def draws(positions: Ints, seed: int, epoch: int, stream: int, count: int) -> NDArray[np.float64]:
    """Return float64[B, count] in [0, 1), multiples of 2^-32: a function of `(seed, epoch, position, stream)` alone."""
    at = np.asarray(positions, np.uint64)[:, None]
    block = np.arange(-(-count // 4), dtype=np.uint64)[None, :]
    words = np.stack(philox((at & _LOW, at >> _32, block, np.full_like(block, stream)), (seed, epoch)), axis=-1)
    return words.reshape(len(at), -1)[:, :count] * np.float64(2.0**-32)


def permute(positions: Ints, n: int, seed: int, epoch: int, stream: Stream = Stream.ORDER) -> Ints:
    """Return int64[B]: the sample at each of the positions (all in `range(n)`) of an epoch's order of `n` samples.

    A keyed permutation of `range(n)`, computed for any positions alone, in memory that does not grow with `n`: a
    Feistel network on a grid just larger than `n`, walked along until the result is below `n`.

    Source: Black, Rogaway, "Ciphers with arbitrary finite domains" (CT-RSA 2002), methods 2 and 3.
    """
    rows = math.isqrt(n - 1) + 1
    columns = -(-n // rows)
    samples = _feistel(np.asarray(positions, np.uint64), rows, columns, (seed, epoch), stream)
    while (outside := samples >= n).any():
        samples[outside] = _feistel(samples[outside], rows, columns, (seed, epoch), stream)
    return samples.astype(np.int64)


def _feistel(cells: Words, rows: int, columns: int, key: tuple[int, int], stream: Stream) -> Words:
    """Permute the cells of a grid: shift its rows and its columns in turn, each by an amount drawn from the other."""
    row, column = np.divmod(cells, np.uint64(columns))
    for number in range(_FEISTEL_ROUNDS):
        if number % 2:
            column = (column + _shift(row, number, key, stream)) % np.uint64(columns)
        else:
            row = (row + _shift(column, number, key, stream)) % np.uint64(rows)
    return row * np.uint64(columns) + column


def _shift(half: Words, number: int, key: tuple[int, int], stream: Stream) -> Words:
    """Return 62 random bits for each value of `half` in a round."""
    counter = (half & _LOW, half >> _32, np.full_like(half, number), np.full_like(half, stream))
    high, low, _, _ = philox(counter, key)
    return (high >> np.uint64(2)) << _32 | low


def micro_positions(step: int, micro: int, *, rank: int, world_size: int, plan: Plan) -> tuple[int, Ints]:
    """Return the epoch, and int64[micro_batch]: the positions in it of a rank's micro-batch number `micro` of a step.

    The micro-batches of a step, and what is in each, depend on the step alone; a larger world shares the same ones
    out among more ranks. The tail of an epoch that does not fill a global batch is dropped.
    """
    epoch, step_of_epoch = divmod(step, plan.steps_per_epoch)
    start = step_of_epoch * plan.global_batch + (micro * world_size + rank) * plan.micro_batch
    return epoch, np.arange(start, start + plan.micro_batch, dtype=np.int64)


def repeated(positions: Ints, repeats: int, global_batch: int) -> Ints:
    """Return int64[B]: the places in the epoch's order of samples, where each sample comes `repeats` times in a step.

    The copies stand as far apart in the global batch as they can, in different micro-batches; the epoch's order is
    used up that many times more slowly.

    Source: Hoffer et al. 2020, "Augment your batch" (https://arxiv.org/abs/1901.09335).
    """
    step, place = np.divmod(positions, global_batch)
    distinct = -(-global_batch // repeats)
    places: Ints = step * distinct + place % distinct
    return places


def eval_positions(n: int, batch: int, *, rank: int, world_size: int) -> Iterator[Ints]:
    """Yield int64[<= batch]: this rank's batches of `range(n)`, dealt out so that each position is in exactly one.

    The batches are the same for every world; some ranks may get one fewer than others, or none at all.
    """
    for start in range(rank * batch, n, world_size * batch):
        yield np.arange(start, min(start + batch, n), dtype=np.int64)
