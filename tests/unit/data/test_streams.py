"""Streams of random numbers: none is shared, and what a seed meant before it means now."""

import zlib
from pathlib import Path

import numpy as np

from pipeline.config import load
from pipeline.data import augment, mixing, order
from pipeline.data.blocks import block_places
from pipeline.data.index import open_index
from pipeline.data.pack import Settings, pack
from pipeline.data.plan import train_plan
from pipeline.data.quarantine import Quarantine
from pipeline.data.synthetic import make_index

AUGMENTED = ("augment.policy=randaugment", "augment.erase=0.5", "mix.cutmix=1", "mix.mixup=0.2", "data.executor=synthetic")
# CRC-32 of arrays that were computed before streams had an enum.
RECORDED = {
    "samples": 650358501,
    "crops": 3348667018,
    "flips": 3982846006,
    "augmentations": 2323278618,
    "erased": 2148437422,
    "stand-ins": 3957997969,
    "blocks": 233649038,
}


def test_the_same_seed_gives_what_it_gave_before() -> None:
    cfg = load(None, AUGMENTED)
    index, at = make_index("train", 1000, 10), np.arange(40, 72, dtype=np.int64)
    ids = order.permute(at, 1000, 7, 3)
    crops = train_plan(index, cfg.data, ids, at, seed=7, epoch=3)
    choices = augment.choose(cfg.augment, at, seed=7, epoch=3, size=224, mean=cfg.data.mean)
    assert choices is not None
    bad = Quarantine(index, "train", 1.0)
    bad.learn({int(sample): "x" for sample in ids[:5]})
    found = {
        "samples": [ids],
        "crops": [crops.boxes],
        "flips": [crops.flip],
        "augmentations": [choices.ops, choices.values],
        "erased": [choices.erase],
        "stand-ins": [bad.replace(ids, at, 7, 3)],
        "blocks": [block_places(at, 1000, (8, 4), seed=7, epoch=3)],
    }
    sums = {what: zlib.crc32(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)) for what, arrays in found.items()}
    assert sums == RECORDED
    assert mixing.choose(cfg.mix, 40, seed=7, epoch=3, size=224) == mixing.Mixing(0.7302858797217647, None)


def test_the_order_on_the_disk_is_no_epoch_s_order(images: Path, cache: Path, tmp_path: Path) -> None:
    pack(images, tmp_path, Settings(), cache, 1)
    shards = open_index(tmp_path, "train", None).shards
    assert shards is not None
    n = len(shards.order)
    assert shards.order.tolist() != order.permute(np.arange(n), n, 0, 0).tolist()


def test_no_two_streams_share_their_numbers() -> None:
    first = {tuple(order.draws(np.arange(4), 0, 0, stream, 4).ravel()) for stream in order.Stream}
    assert len(first) == len(order.Stream)
    orders = {tuple(order.permute(np.arange(64), 64, 0, 0, stream).tolist()) for stream in order.Stream}
    assert len(orders) == len(order.Stream)
