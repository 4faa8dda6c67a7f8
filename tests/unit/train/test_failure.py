import errno
from pathlib import Path

import pytest
import torch

from pipeline.config.schema import Batch
from pipeline.errors import DataError, PeerLost, PipelineError, Stopped, TrainingError, TransientError, UsageError
from pipeline.train import failure


def fail(run_dir: Path, error: Exception, step: int = 7, rank: int = 0, size: int = 1) -> Exception:
    failure.begin(run_dir)
    try:
        with failure.judged(run_dir, lambda: step, rank, size, Batch()):
            raise error
    except Exception as raised:
        return raised


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


def test_the_same_error_at_the_same_step_would_come_again(tmp_path: Path) -> None:
    first = ValueError("bad thing at 0x7f01 in process 12")
    assert fail(tmp_path, first) is first
    again = fail(tmp_path, ValueError("bad thing at 0x7f99 in process 345"))
    assert isinstance(again, TrainingError) and again.exit_code == 70 and "twice in a row at step 7" in str(again)
    assert fail(tmp_path, ValueError("bad thing at 0x7f99 in process 345")).exit_code == 70  # type: ignore[attr-defined]


@pytest.mark.parametrize(("step", "text"), [(8, "bad"), (7, "worse")])
def test_another_step_or_error_is_tried_again(tmp_path: Path, step: int, text: str) -> None:
    fail(tmp_path, ValueError("bad"))
    other = ValueError(text)
    assert fail(tmp_path, other, step) is other


def test_two_ranks_that_fail_at_once_are_not_twice_in_a_row(tmp_path: Path) -> None:
    failure.begin(tmp_path)
    for rank in (0, 1):
        with pytest.raises(ValueError, match="bad"), failure.judged(tmp_path, lambda: 1, rank, 2, Batch()):
            raise ValueError("bad")


def test_memory_that_runs_out_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**48)
    for error in (real.value, MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")):
        found = fail(tmp_path, error, rank=1, size=2)
        assert isinstance(found, TrainingError) and "lower batch.micro (256)" in str(found) and not found.agreed
    kept = failure.read(tmp_path)
    assert kept is not None and (kept.code, kept.rank, kept.step) == (70, 1, 7)


def test_what_ranks_agree_on_is_kept_once_and_what_may_pass_is_not(tmp_path: Path) -> None:
    assert fail(tmp_path, TrainingError("not finite"), rank=1, size=2).agreed  # type: ignore[attr-defined]
    fail(tmp_path, PeerLost("gone"))
    fail(tmp_path, Stopped("stopped"))
    assert failure.read(tmp_path) is None
    assert not fail(tmp_path, DataError("a.jpeg"), rank=1, size=2).agreed  # type: ignore[attr-defined]
    assert failure.read(tmp_path) is not None


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_disk_that_fails_is_no_failure_that_would_come_again(tmp_path: Path, wrapped: bool) -> None:
    for _ in range(2):
        error: Exception = OSError(errno.EIO, "Input/output error", "a.jpeg")
        if wrapped:
            error, error.__cause__ = UsageError("curves.png: can't write"), error
        found = fail(tmp_path, error)
        assert isinstance(found, TransientError) and found.exit_code == 69
    assert failure.read(tmp_path) is None


def test_only_a_restart_of_the_same_launch_is_refused(tmp_path: Path) -> None:
    one = {"TORCHELASTIC_RUN_ID": "one", "TORCHELASTIC_RESTART_COUNT": "1"}
    failure.write(tmp_path, failure.Failure(code=70, step=3, error="not finite", rank=1, launch="one", restart=0))
    with pytest.raises(PipelineError, match=r"not started again after the failure at step 3 \(rank 1\): not finite") as refused:
        failure.refuse_repetition(tmp_path, one)
    assert refused.value.exit_code == 70
    failure.refuse_repetition(tmp_path, one | {"TORCHELASTIC_RUN_ID": "two"})
    failure.refuse_repetition(tmp_path, one | {"TORCHELASTIC_RESTART_COUNT": "0"})
    failure.begin(tmp_path, one)
    assert failure.for_good(tmp_path, "one")
    failure.begin(tmp_path, {"TORCHELASTIC_RUN_ID": "one"})  # the user types the command again
    assert failure.for_good(tmp_path, "one") is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"code": "x"}', "\x00" * 99])
def test_a_damaged_file_says_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "failure.json").write_text(content)
    assert failure.read(tmp_path) is None
    failure.refuse_repetition(tmp_path, {"TORCHELASTIC_RESTART_COUNT": "1"})
