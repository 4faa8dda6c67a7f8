import contextlib
import errno
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import CheckpointError, TransientError, UsageError
from pipeline.train import checkpoint
from pipeline.train.checkpoint import Store


def state(step: int) -> dict[str, object]:
    return {"model": {"w": torch.full((100,), float(step))}, "step": step}


def test_the_newest_is_found_and_old_ones_go(tmp_path: Path) -> None:
    store = Store(tmp_path / "checkpoints", keep=2)
    assert store.newest() is None
    for step, score in ((5, None), (10, 0.5), (100, None)):
        store.save(state(step), step)
        if score:
            store.keep_best(step, score)
    assert [p.name for p in store.steps()] == ["step-000000010.pt", "step-000000100.pt"]
    newest = store.newest()
    assert newest is not None and checkpoint.load(newest)["step"] == 100
    assert checkpoint.load(store.best)["step"] == 10
    assert not [p for p in (tmp_path / "checkpoints").iterdir() if p.name.endswith(".tmp")]


def test_a_file_that_is_no_checkpoint_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "step-x.pt").touch()
    (tmp_path / ".step-000000009.pt.77.tmp").touch()
    assert Store(tmp_path).newest() is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 0.999))
def test_a_checkpoint_cut_anywhere_is_an_error_that_names_it(tmp_path: Path, share: float) -> None:
    path = Store(tmp_path).save(state(1), 1)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"step-000000001.pt: truncated, damaged or not a checkpoint; delete it"):
        checkpoint.load(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "none.pt")
    torch.save({"w": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of this pipeline"):
        checkpoint.load(tmp_path / "weights.pt")


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("evil-was-here"),))


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"format": 1, "x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "evil.pt")
    assert not Path("evil-was-here").exists()


def test_a_place_that_cannot_be_written_is_named_and_left_clean(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file/checkpoints/step-000000001.pt: can't write"):
        Store(tmp_path / "file" / "checkpoints").save(state(1), 1)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


SCORES = {1: 0.1, 2: 0.4, 3: 0.3, 4: 0.7, 5: 0.5}
CALLS = ("fsync", "replace", "rename", "link", "unlink")


def train(store: Store) -> dict[str, float]:
    """Save, evaluate and keep the best at each step as the loop does, from where the files are; return the best."""
    newest = store.newest_whole(print)
    saved = checkpoint.load(newest) if newest else {"step": 0, "best": {}}
    done, best = saved["step"], saved["best"]
    if newest:
        assert store.rewind(done, best.get("step"))
    for step in range(max(done, 1), max(SCORES) + 1):
        if not store.path(step).exists():
            store.save(state(step) | {"best": best}, step)
        if SCORES[step] > best.get("score", 0):
            best = {"step": step, "score": SCORES[step]}
            store.keep_best(step, SCORES[step])
    return best


def dies_at(number: int, folder: Path, after: bool, links: bool) -> bool:
    """Train in a process of its own that is gone at its `number`th call that changes files; return whether it came so far."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def counted(call: Any) -> Any:
            def run(*arguments: Any, **named: Any) -> Any:
                nonlocal count
                count += 1
                fails = not links and call is link
                if count == number and (fails or not after):
                    os._exit(9)
                if fails:
                    raise OSError(errno.EPERM, "no links here")
                result = call(*arguments, **named)
                if count == number:
                    os._exit(9)
                return result

            return run

        link = os.link
        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        with contextlib.suppress(BaseException):
            train(Store(folder, keep=1 + number % 2))
            os._exit(0)
        os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.parametrize(("after", "links"), [(False, True), (True, False)])
def test_a_kill_between_any_two_changes_of_files_loses_nothing(tmp_path: Path, after: bool, links: bool) -> None:
    number = 0
    while dies_at(number := number + 1, folder := tmp_path / str(number), after, links):
        store = Store(folder)
        for best in store.bests():  # the score is that of the weights, whenever one looks
            assert float(best.stem.split("-")[2]) == SCORES[checkpoint.load(best)["step"]]
        assert not store.best.exists() or checkpoint.load(store.best)["step"] in [int(p.name[5:14]) for p in store.bests()]
        whole = [checkpoint.load(path) for path in store.steps()]
        assert whole or not [p for p in folder.glob("best*")]
        assert train(store) == {"step": 4, "score": 0.7}
        assert checkpoint.load(store.best)["step"] == 4 and not list(folder.glob("*.damaged"))
        shutil.rmtree(folder)
    assert number > 40


def test_the_best_is_another_name_of_the_steps_file(tmp_path: Path) -> None:
    store = Store(tmp_path, keep=1)
    store.save(state(1), 1)
    store.keep_best(1, 0.5)
    assert store.best.samefile(store.path(1))
    store.save(state(2), 2)
    assert not store.path(1).exists() and checkpoint.load(store.best)["step"] == 1


def test_the_best_goes_back_with_the_training(tmp_path: Path) -> None:
    """Step 3 was the best and is damaged: at step 2, where training goes on, it is step 1 again."""
    store = Store(tmp_path)
    for step, score in ((1, 0.5), (2, None), (3, 0.6)):
        store.save(state(step), step)
        if score:
            store.keep_best(step, score)
    store.path(3).write_bytes(b"")
    said: list[str] = []
    assert store.newest_whole(said.append) == store.path(2)
    assert store.rewind(2, 1) and checkpoint.load(store.best)["step"] == 1
    assert [line.partition(": ")[2].split(": ")[0] for line in said] == [
        str(store.path(3)),
        str(tmp_path / "best-000000003-0.600000.pt"),
    ]
    assert not store.rewind(2, 7)


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda b: b[:900] + b"\0" * 9 + b[909:]]
)
def test_damaged_checkpoints_are_set_aside_and_the_one_before_is_used(tmp_path: Path, damage: Any) -> None:
    store, said = Store(tmp_path), []
    for step in (1, 2):
        store.save(state(step), step)
    whole = store.path(2).read_bytes()
    store.path(2).write_bytes(damage(whole))
    assert store.newest_whole(said.append) == store.path(1)
    assert (tmp_path / "step-000000002.pt.damaged").read_bytes() == damage(whole)
    (line,) = said
    assert str(store.path(2)) in line and "\n" not in line
    store.path(1).write_bytes(b"")
    for _ in range(2):  # a start never begins anew where there were checkpoints
        with pytest.raises(CheckpointError, match=r"every checkpoint is damaged \(step-000000001.pt.damaged, .*new run.dir"):
            store.newest_whole(said.append)


def test_a_checkpoint_that_cannot_be_read_for_now_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.save(state(1), 1)

    def stale(*_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(zipfile.ZipFile, "testzip", stale)
    with pytest.raises(TransientError, match="Stale file handle"):
        store.newest_whole(print)
    assert store.newest() == store.path(1)
