"""Bad images: replaced in training, left out in evaluation, remembered, and too many of them an error."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config import Config, Plan
from pipeline.data.batch import Batch
from pipeline.data.dataset import Dataset, open_dataset
from pipeline.data.loader import eval_loader, train_loader
from pipeline.data.quarantine import Entry, Quarantine, read
from pipeline.data.synthetic import make_index
from pipeline.errors import DataError
from pipeline.world import World

EXECUTORS = ["dali", "hybrid", "reference"]
PlanFor = Callable[[Config, Dataset, World], Plan]
Sized = Callable[[list[tuple[int, int]]], "object"]


@pytest.fixture
def small_config(small: Path, config: Callable[..., Config], tmp_path: Path) -> Callable[..., Config]:
    """A configuration over six training images, two steps of two micro-batches an epoch, that bears any number of bad ones."""

    def make(*overrides: str) -> Config:
        crops = ("data.resolution=32", "eval.resize=36", "eval.crop=32", "eval.batch=2")
        batches = ("batch.global=2", "batch.micro=1", "train.epochs=3", "data.max_bad_fraction=0.5")
        return config(f"data.root={small}", f"data.cache={tmp_path / 'own cache'}", *crops, *batches, *overrides)

    return make


def trained(cfg: Config, plan_for: PlanFor, rank: int = 0, size: int = 1, start_step: int = 0) -> tuple[Dataset, list[Batch]]:
    world = World(rank=rank, size=size)
    data = open_dataset(cfg, world)
    loader = train_loader(cfg, plan_for(cfg, data, world), world, data, start_step)
    batches = list(loader)
    loader.close()
    return data, batches


def spoil(small: Path, *names: str) -> None:
    for name in names:
        path = small / "train" / name
        path.write_bytes(path.read_bytes()[:400])


@pytest.mark.parametrize("executor", EXECUTORS)
def test_quarantine_replaces_bad_images_the_same_in_every_world_and_after_a_resume(
    executor: str, small: Path, small_config: Callable[..., Config], plan_for: PlanFor, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = small_config(f"data.executor={executor}")
    _, whole = trained(cfg, plan_for)
    spoil(small, "cat/1.jpg", "dog/2.jpg")  # samples 1 and 5
    data, alone = trained(cfg, plan_for)
    assert len(alone) == len(whole) == 18
    assert all(batch.images.shape == (1, 3, 32, 32) for batch in alone)
    for before, now in zip(whole, alone, strict=True):
        if before.ids[0] in (1, 5):
            assert now.ids[0] not in (1, 5)
            assert now.labels[0] == data.train.labels[now.ids[0]]
        else:
            assert now.ids.tolist() == before.ids.tolist()
            assert torch.equal(now.images, before.images)
    assert data.bad_train.bad.tolist() == [1, 5]
    said = capsys.readouterr().err
    assert said.count("bad image, left out") == 2
    assert str(small / "train" / "dog" / "2.jpg") in said
    ranks = [trained(cfg, plan_for, rank, 2)[1] for rank in (0, 1)]
    shared = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    resumed = trained(cfg, plan_for, start_step=4)[1]
    for other, expected in ((shared, alone), (resumed, alone[8:])):
        assert [batch.ids.tolist() for batch in other] == [batch.ids.tolist() for batch in expected]
        assert all(torch.equal(a.images, b.images) for a, b in zip(other, expected, strict=True))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_quarantine_leaves_bad_images_out_of_evaluation(
    executor: str, small: Path, small_config: Callable[..., Config]
) -> None:
    cfg = small_config(f"data.executor={executor}")
    data = open_dataset(cfg, World())
    (small / "val" / "cat" / "2.jpg").write_text("gone")
    for _ in range(2):
        loader = eval_loader(cfg, World(), data.val, data.bad_val)
        batches = list(loader)
        loader.close()
        assert [batch.ids.tolist() for batch in batches] == [[0, 1], [3], [4, 5]]
        assert data.bad_val.good_images(World()) == 5


def test_quarantine_is_remembered_in_the_run_s_file_and_taken_over(
    small: Path, small_config: Callable[..., Config], plan_for: PlanFor, tmp_path: Path
) -> None:
    cfg = small_config()
    spoil(small, "cat/1.jpg")
    data = open_dataset(cfg, World())
    data.remember_bad(tmp_path / "bad.tsv", World())
    list(train_loader(cfg, plan_for(cfg, data, World()), World(), data, 0))
    assert [(e.split, e.sample, e.name) for e in read(tmp_path / "bad.tsv")] == [("train", 1, "cat/1.jpg")]
    assert data.bad_images() == 1
    again = open_dataset(cfg, World())
    again.remember_bad(tmp_path / "bad.tsv", World())
    assert again.bad_train.bad.tolist() == [1]
    listed = open_dataset(small_config(f"data.quarantine={tmp_path / 'bad.tsv'}"), World())
    assert (listed.bad_train.bad.tolist(), listed.bad_val.bad.tolist()) == ([1], [])


def test_what_the_user_lists_does_not_count_against_the_limit_and_keeps_its_reason(
    small: Path, small_config: Callable[..., Config], plan_for: PlanFor, tmp_path: Path
) -> None:
    entries = [Entry("train", 0, "cat/0.jpg", "a fish"), Entry("train", 1, "cat/1.jpg", "blurred")]
    (tmp_path / "list.tsv").write_text("".join(entry.line() for entry in entries))
    cfg = small_config(f"data.quarantine={tmp_path / 'list.tsv'}", "data.max_bad_fraction=0")
    data, batches = trained(cfg, plan_for)
    assert (data.bad_images(), data.bad_train.reason(0)) == (2, "a fish")
    assert not {0, 1} & {int(batch.ids[0]) for batch in batches}
    (small / "train" / "dog" / "0.jpg").write_bytes(b"")
    (small / "train" / "dog").touch()
    with pytest.raises(DataError, match=r"1 image of 6 can't be read: dog/0.jpg \(is empty"):
        open_dataset(cfg, World())


@pytest.mark.parametrize(
    ("split", "names", "said"),
    [
        (
            "train",
            ["cat/0.jpg", "cat/1.jpg", "cat/2.jpg"],
            r"leave no image of 1 class \(cat\); mend images, take some off a list",
        ),
        ("train", [f"{name}/{k}.jpg" for name in ("cat", "dog") for k in range(3)], "leave 0 of 6 images, too few"),
        ("val", [f"{name}/{k}.jpg" for name in ("cat", "dog") for k in range(3)], "leave 0 of 6 images, too few"),
        ("val", ["cat/0.jpg", "cat/1.jpg", "cat/2.jpg"], ""),
    ],
)
def test_a_list_that_leaves_too_little_is_refused_at_the_start(
    split: str, names: list[str], said: str, small_config: Callable[..., Config], tmp_path: Path
) -> None:
    (tmp_path / "list.tsv").write_text("".join(Entry(split, 0, name, "?").line() for name in names))
    cfg = small_config(f"data.quarantine={tmp_path / 'list.tsv'}")
    if not said:
        assert open_dataset(cfg, World()).bad_images() == len(names)
        return
    with pytest.raises(DataError, match=said):
        open_dataset(cfg, World())


def test_a_list_that_leaves_hardly_any_to_stand_in_is_refused_at_the_start(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    shapes = ("data.executor=synthetic", "data.synthetic_train=1000", "data.synthetic_classes=2")
    index = open_dataset(config(*shapes), World()).train
    for listed, refused in ((890, False), (910, True)):
        entries = [Entry("train", sample, index.name(sample), "?") for sample in range(listed)]
        (tmp_path / "list.tsv").write_text("".join(entry.line() for entry in entries))
        with pytest.raises(DataError, match="leave 90 of 1,000 images, too few") if refused else contextlib.nullcontext():
            open_dataset(config(*shapes, f"data.quarantine={tmp_path / 'list.tsv'}"), World())


class Counted(np.ndarray):
    """Bytes of which is counted how many are copied."""

    copied = 0

    def tobytes(self, *args: Any) -> bytes:
        Counted.copied += self.size
        return super().tobytes(*args)


def test_names_are_gone_through_once_for_a_long_list_of_other_images(tmp_path: Path) -> None:
    encoded = [f"{k:06d}.jpg".encode() for k in range(2000)]
    index = replace(
        make_index("train", len(encoded), 10),
        names=np.frombuffer(b"".join(encoded), np.uint8).view(Counted),
        offsets=np.cumsum([0, *map(len, encoded)], dtype=np.uint32),
    )
    names = [f"no{k:04d}.jpg" for k in range(1000)] + [index.name(k) for k in range(1000)]
    (tmp_path / "list.tsv").write_text("".join(Entry("train", k, name, "?").line() for k, name in enumerate(names)))
    Counted.copied = 0
    found = Quarantine(index, "train", 1.0, [tmp_path / "list.tsv"])
    assert (len(found.unknown), found.bad.tolist()) == (1000, list(range(1000)))
    assert Counted.copied <= 2 * len(index.names)


def test_what_can_t_be_read_from_the_start_is_named_once_and_remembered(
    small: Path, small_config: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small / "train" / "dog" / "0.jpg").write_bytes(b"")
    for rank, said in ((1, 0), (0, 1), (0, 0)):  # rank 0 says it; a later start of the run does not again
        data = open_dataset(small_config(), World(rank=rank, size=2))
        data.remember_bad(tmp_path / "bad.tsv", World(rank=rank, size=2))
        error = capsys.readouterr().err
        assert error.count(f"1 bad train image, left out: {small / 'train' / 'dog' / '0.jpg'}: is empty") == said
        assert data.bad_images() == 1
    assert [(e.split, e.sample, e.name) for e in read(tmp_path / "bad.tsv")] == [("train", 3, "dog/0.jpg")]


def test_quarantine_finds_samples_by_name_where_numbers_changed(
    small: Path, small_config: Callable[..., Config], tmp_path: Path
) -> None:
    entries = [Entry("train", 0, "dog/1.jpg", "?"), Entry("val", 99, "cat/0.jpg", "?"), Entry("train", 3, "no/such.jpg", "?")]
    (tmp_path / "list.tsv").write_text("".join(entry.line() for entry in entries) + "train\t5\tcut o")
    data = open_dataset(small_config(f"data.quarantine={tmp_path / 'list.tsv'}"), World())
    assert (data.bad_train.bad.tolist(), data.bad_val.bad.tolist()) == ([4], [0])


@pytest.mark.parametrize("executor", EXECUTORS)
def test_quarantine_stops_the_run_with_a_list_when_it_is_too_large(
    executor: str, small: Path, small_config: Callable[..., Config], plan_for: PlanFor
) -> None:
    cfg = small_config(f"data.executor={executor}", "data.max_bad_fraction=0.2")
    data = open_dataset(cfg, World())
    spoil(small, "cat/1.jpg", "dog/0.jpg")
    list(train_loader(cfg, plan_for(cfg, data, World()), World(), data, 0))
    with pytest.raises(DataError) as failed:
        data.bad_train.share(World())
    assert f"{small / 'train'}: 2 images of 6 can't be read: {small / 'train'}" in str(failed.value)
    assert str(failed.value).endswith("or raise data.max_bad_fraction")


def test_a_run_with_too_many_bad_images_stops_again_until_they_are_mended(
    small: Path, small_config: Callable[..., Config], plan_for: PlanFor, tmp_path: Path
) -> None:
    cfg = small_config("data.max_bad_fraction=0.2")
    whole = (small / "train" / "dog" / "0.jpg").read_bytes()
    data = open_dataset(cfg, World())
    data.remember_bad(tmp_path / "bad.tsv", World())
    spoil(small, "cat/1.jpg", "dog/0.jpg")
    list(train_loader(cfg, plan_for(cfg, data, World()), World(), data, 0))
    with pytest.raises(DataError, match="2 images of 6"):
        data.bad_train.share(World())
    with pytest.raises(DataError, match="2 images of 6 can't be read: cat/1.jpg"):
        open_dataset(cfg, World()).remember_bad(tmp_path / "bad.tsv", World())
    (small / "train" / "dog" / "0.jpg").write_bytes(whole)
    open_dataset(cfg, World()).remember_bad(tmp_path / "bad.tsv", World())
    (small / "train" / "cat" / "1.jpg").write_bytes(whole)
    again = open_dataset(cfg, World())
    again.remember_bad(tmp_path / "bad.tsv", World())
    again.bad_train.learn({4: "torn"})  # the two that were mended do not count
    again.bad_train.share(World())
    again.bad_train.learn({5: "torn"})
    with pytest.raises(DataError, match="2 images of 6 can't be read"):
        again.bad_train.share(World())


def test_a_run_s_file_whose_last_line_was_cut_off_is_gone_on_with(
    small: Path, small_config: Callable[..., Config], tmp_path: Path
) -> None:
    (tmp_path / "bad.tsv").write_text("train\t1\tcat/1.jpg\ttorn\ntrain\t2\tcat/")
    for _ in range(2):
        data = open_dataset(small_config(), World())
        data.remember_bad(tmp_path / "bad.tsv", World())
        data.bad_val.learn({3: "torn"})
        assert (data.bad_train.bad.tolist(), data.bad_val.bad.tolist()) == ([1], [3])
    with pytest.raises(DataError, match="not a quarantine file"):  # as a list of the user's
        read(tmp_path / "bad.tsv")


def test_quarantine_of_headers_is_known_from_the_start(
    small: Path, small_config: Callable[..., Config], plan_for: PlanFor
) -> None:
    (small / "train" / "dog" / "0.jpg").write_bytes(b"")
    data, batches = trained(small_config(), plan_for)
    assert data.train.bad.tolist() == [3]
    assert len(batches) == 18
    assert 3 not in {int(batch.ids[0]) for batch in batches}
    with pytest.raises(DataError, match=r"train: 1 image of 6 can't be read: dog/0.jpg \(.+\); replace or remove such files"):
        open_dataset(small_config("data.max_bad_fraction=0.1"), World())


def test_quarantine_replaces_by_position_whatever_is_known_already(small: Path, small_config: Callable[..., Config]) -> None:
    index = open_dataset(small_config(), World()).train
    first, both = Quarantine(index, "train", 1.0), Quarantine(index, "train", 1.0)
    first.learn({2: "x"})
    both.learn({4: "y"})
    both.learn({2: "x"})
    ids, positions = np.array([0, 2, 2, 4, 2]), np.arange(5)
    replaced = first.replace(ids, positions, 1, 2)
    assert (replaced[[0, 3]].tolist(), 2 in replaced.tolist()) == ([0, 4], False)
    later = both.replace(ids, positions, 1, 2)
    same = replaced != 4
    assert np.array_equal(later[same], replaced[same])
    assert not {2, 4} & set(later.tolist())
    many = np.full(3000, 2)
    chosen = first.replace(many, np.arange(3000), 0, 0)
    assert np.bincount(chosen, minlength=6)[2] == 0
    assert np.bincount(chosen, minlength=6)[[0, 1, 3, 4, 5]].min() > 500


@pytest.mark.parametrize("text", ["a,b,c\n", "train\tx\tname\treason\n", "one\n"])
def test_quarantine_files_of_something_else_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_text(text)
    with pytest.raises(DataError, match="not a quarantine file"):
        read(tmp_path / "f")
    with pytest.raises(DataError, match="No such file"):
        read(tmp_path / "none")


@pytest.mark.parametrize(
    "name", ["new\nline.jpg", "tab\there.jpg", "cr\rhere.jpg", "back\\nslash\\.jpg", "no utf \udcff.jpg", "\x85.jpg"]
)
def test_any_name_survives_a_list(name: str, small: Path, small_config: Callable[..., Config], tmp_path: Path) -> None:
    (small / "train" / "cat" / "0.jpg").rename(small / "train" / "cat" / name)
    sample = next(k for k, path in enumerate(sorted((small / "train" / "cat").iterdir())) if path.name == name)
    line = Entry("train", sample, f"cat/{name}", "torn\nin two").line()
    (tmp_path / "bad.tsv").write_bytes(line.encode("utf-8", "surrogateescape"))
    assert read(tmp_path / "bad.tsv") == [Entry("train", sample, f"cat/{name}", "torn\nin two")]
    data = open_dataset(small_config(f"data.quarantine={tmp_path / 'bad.tsv'}"), World())
    assert data.bad_train.bad.tolist() == [sample]


def test_a_list_of_other_images_is_told_of(
    small_config: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.tsv").write_text("train\t0\tno/such.jpg\ttorn\nval\t1\tcat/1.jpg\ttorn\n")
    open_dataset(small_config(f"data.quarantine={tmp_path / 'bad.tsv'}"), World())
    text = capsys.readouterr().err
    assert text == f"warning: data.quarantine: {tmp_path / 'bad.tsv'} lists 1 image that train lacks: 'no/such.jpg'\n"


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_bad_image_counts_in_the_step_that_it_belongs_to_however_far_the_executor_works_ahead(
    executor: str, small: Path, small_config: Callable[..., Config], plan_for: PlanFor, tmp_path: Path
) -> None:
    counts = []
    data = open_dataset(small_config(), World())
    spoil(small, "cat/1.jpg", "dog/2.jpg")
    for size, prefetch in ((1, 1), (1, 5), (2, 4)):
        cfg = small_config(f"data.executor={executor}", f"data.prefetch={prefetch}")
        found: list[set[int]] = [set() for _ in range(9)]
        for rank in range(size):
            world = World(rank=rank, size=size)
            bad, file = Quarantine(data.train, "train", 0.5), tmp_path / f"{size} {prefetch} {rank}.tsv"
            bad.attach(file)
            again = replace(data, bad_train=bad)
            loader = train_loader(cfg, plan_for(cfg, again, world), world, again, 0)
            for number, _ in enumerate(loader):
                found[number * size // 2] |= bad.news.keys()
                assert bad.count() == len(bad.news) == (len(read(file)) if file.exists() else 0)
            loader.close()
        counts.append([sorted(set().union(*found[: step + 1])) for step in range(9)])
    assert counts[0] == counts[1] == counts[2]
    assert counts[0][0] != counts[0][-1] == [1, 5]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_rank_whose_images_are_all_gone_gets_to_the_end_of_its_step(
    executor: str, small: Path, small_config: Callable[..., Config], plan_for: PlanFor
) -> None:
    cfg = small_config(f"data.executor={executor}", "data.max_bad_fraction=0.2")
    data = open_dataset(cfg, World())
    spoil(small, *(f"{name}/{number}.jpg" for name in ("cat", "dog") for number in range(3)))
    batches = list(train_loader(cfg, plan_for(cfg, data, World()), World(), data, 0))
    assert len(batches) == 18 and all(batch.images.shape == (1, 3, 32, 32) for batch in batches)
    with pytest.raises(DataError, match="6 images of 6 can't be read"):
        data.bad_train.share(World())
    assert data.bad_train.news == {}
