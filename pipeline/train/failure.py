"""How a training failed, kept in its run directory, so that a launcher does not repeat what would fail again the same way."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pipeline.config.schema import Batch
from pipeline.errors import PipelineError, Stopped, TrainingError, TransientError, UsageError
from pipeline.files import write_atomically
from pipeline.retry import may_pass

FOR_GOOD = (TrainingError.exit_code, UsageError.exit_code)
"""Exit codes that another start would end with too; of several ranks' codes the first of these is the reason."""
_FILE = "failure.json"
_NO_MEMORY = re.compile(r"(?i)out of memory|can't allocate memory|not enough memory|cannot allocate memory")


class Failure(BaseModel):
    """The newest failure of a run: exit code, step and text; `launch` and `restart` say in which start, None: in an earlier."""

    model_config = ConfigDict(frozen=True)

    code: int
    step: int
    error: str
    rank: int
    launch: str | None
    restart: int


def read(run_dir: Path) -> Failure | None:
    """Return the newest failure of a run; None if there is none that can be read."""
    try:
        return Failure.model_validate_json((run_dir / _FILE).read_bytes())
    except (OSError, ValueError):
        return None


def write(run_dir: Path, failure: Failure) -> None:
    """Keep a failure; a disk that is full must not hide what it was."""
    with contextlib.suppress(PipelineError):
        write_atomically(run_dir / _FILE, lambda path: path.write_text(failure.model_dump_json() + "\n", encoding="utf-8"))


def launch_id(env: Mapping[str, str] = os.environ) -> str:
    """Return which start of a launcher this is; its restarts of the processes belong to it."""
    job = f"{env['SLURM_JOB_ID']}-{env.get('SLURM_RESTART_COUNT', '0')}" if "SLURM_JOB_ID" in env else ""
    return env.get("TORCHELASTIC_RUN_ID", job)


def for_good(run_dir: Path, launch: str) -> Failure | None:
    """Return the failure that ended this start of the launcher and would come again."""
    found = read(run_dir)
    return found if found and found.launch == launch and found.code in FOR_GOOD else None


def begin(run_dir: Path | None, env: Mapping[str, str] = os.environ) -> None:
    """Take what failed for a thing of the past, at a launcher's first start of the processes."""
    found = read(run_dir) if run_dir and not _restart(env) else None
    if run_dir and found:
        write(run_dir, found.model_copy(update={"launch": None}))


def refuse_repetition(run_dir: Path, env: Mapping[str, str] = os.environ) -> None:
    """Keep a launcher from starting again what would fail the same way.

    Raises:
        PipelineError: with the exit code of the failure, if this is a restart after one.
    """
    found = for_good(run_dir, launch_id(env)) if _restart(env) else None
    if found:
        error = PipelineError(f"not started again after the failure at step {found.step} (rank {found.rank}): {found.error}")
        error.exit_code = found.code
        raise error


@contextlib.contextmanager
def judged(run_dir: Path, step: Callable[[], int], rank: int, size: int, batch: Batch) -> Iterator[None]:
    """Tell apart, and keep, what the `with` block fails with; `step` returns the step at which it does.

    Raises:
        TransientError: if the error is one of a disk or a file server that may recover.
        TrainingError: if memory ran out, or the same error came at the same step as in the start before.
    """
    try:
        yield
    except (Stopped, TransientError):
        raise
    except Exception as error:
        found = _judge(error, step(), read(run_dir), batch)
        if isinstance(found, PipelineError) and not isinstance(error, TrainingError):  # which all ranks see in their sums
            found.agreed = size == 1
        code, said = getattr(found, "exit_code", 1), str(found) if isinstance(found, PipelineError) else _signature(error)
        if said and not isinstance(found, TransientError) and (rank == 0 or not isinstance(error, TrainingError)):
            write(run_dir, Failure(code=code, step=step(), error=said, rank=rank, launch=launch_id(), restart=_restart()))
        if found is error:
            raise
        raise found from error


def _judge(error: Exception, step: int, before: Failure | None, batch: Batch) -> Exception:
    """Return the error that another one really is."""
    said = _signature(error)
    if may_pass(error):
        return TransientError(str(error) if isinstance(error, PipelineError) else f"{said}; the last checkpoint is intact")
    if isinstance(error, PipelineError):
        return error
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        return TrainingError(
            f"out of memory at step {step} ({said[:160]}); lower batch.micro ({batch.micro}) with batch.global as it is, "
            "or use train.precision=bf16"
        )
    again = before and (before.launch, before.restart) != (launch_id(), _restart())  # else another rank's of this start
    if before and again and before.step == step and _same(before.error, said):
        return TrainingError(f"{said}: twice in a row at step {step}; it would come again, so look for the cause")
    return error


def _signature(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _same(before: str, now: str) -> bool:
    """Return whether two errors are the same but for numbers, such as addresses; the one before may say that it came twice."""
    plain = [re.sub(r"0x[0-9a-f]+|\d+", "#", text) for text in (before, now)]
    return plain[0].startswith(plain[1])


def _restart(env: Mapping[str, str] = os.environ) -> int:
    """Return how often the launcher has started these processes again."""
    text = env.get("TORCHELASTIC_RESTART_COUNT", "0")
    return int(text) if text.isdecimal() else 0
