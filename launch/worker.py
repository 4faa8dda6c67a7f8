"""One training process under the elastic agent: `python -m pipeline train`, with an end that the agent does not mistake.

The agent restarts whatever does not exit with 0. Being done, stopped on request, bad input and failures that would come
again are ends for good if all processes agree on them: they are noted in a folder that the agent's process reads, and become
exit code 0. One that fails alone ends with its code, so that all are restarted, on every node; the restart finds what failed
(`pipeline.train.failure`) and all agree. Nothing may change an end for good on the way out: the agents of other nodes have
seen their workers end, and a restart would wait for them in vain.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import PipelineError, Stopped, TrainingError, UsageError
from pipeline.train.preemption import StopFlag

FOLDER, AGENT = "LAUNCH_FOLDER", "LAUNCH_AGENT"
_FOR_GOOD = (0, UsageError.exit_code, TrainingError.exit_code, Stopped.exit_code)
_STOP, _PID, _EXIT = "stop", "pid.", "exit."
_PR_SET_PDEATHSIG = 1  # Source: linux/prctl.h


def ask_to_stop(folder: Path) -> list[int]:
    """Leave word for workers still to come, and return the process ids of those that are there."""
    (folder / _STOP).touch()
    return [pid for path in folder.glob(f"{_PID}*") if _is_child(pid := int(path.read_text()))]


def _is_child(pid: int) -> bool:
    """Return whether a process lives and is this one's: files of the dead stay, and their ids may be used again."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
    except OSError:
        return False
    return int(parent) == os.getpid() and state != "Z"


def outcomes(folder: Path) -> list[int]:
    """Return the exit codes of the workers that ended for good."""
    return [int(path.read_text()) for path in folder.glob(f"{_EXIT}*")]


def rank_mark(rank: int | str) -> str:
    """Return the name of the file that tells whose log it lies beside: which node gets which ranks is the agents' affair."""
    return f"rank.{rank}"


def main(arguments: Sequence[str]) -> int:
    """Train; return the exit code for the agent."""
    with StopFlag():  # from before the agent knows of this process on
        return _main(arguments)


def _main(arguments: Sequence[str]) -> int:
    folder, rank = Path(os.environ[FOLDER]), os.environ["LOCAL_RANK"]
    _die_with(int(os.environ[AGENT]))
    (folder / f"{_EXIT}{rank}").unlink(missing_ok=True)  # of the worker before, if only others failed then
    _write(folder / f"{_PID}{rank}", os.getpid())
    if beside := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # where this process's log is too
        Path(beside).with_name(rank_mark(os.environ["RANK"])).touch()
    # The id first, then the look: a request that comes in between reaches this process as a signal.
    code, agreed = (Stopped.exit_code, True) if (folder / _STOP).exists() else _train(arguments)
    if code not in _FOR_GOOD or not agreed:
        return code
    _write(folder / f"{_EXIT}{rank}", code)
    return 0


def _die_with(agent: int) -> None:
    """Have this process killed when its agent is: nobody would restart it, stop it or hear how it ended.

    It is not asked to save and stop (SIGTERM): all ranks would agree to that, where the other nodes are to go on without
    this one. They notice at once, as they notice any killed worker, and the last checkpoint counts. Source: prctl(2).
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != agent:  # it was gone before
        os.kill(os.getpid(), signal.SIGKILL)


def train(arguments: Sequence[str]) -> int:
    """Run `python -m pipeline train ARGUMENTS` in this process and return its exit code."""
    return _train(arguments)[0]


def _train(arguments: Sequence[str]) -> tuple[int, bool]:
    """Train; return the exit code, and whether all ranks end with it."""
    from pipeline.__main__ import main as pipeline

    StopFlag.afterwards = signal.SIG_IGN
    try:
        pipeline(["train", *arguments])
    except SystemExit as error:
        cause = error.__context__
        return int(error.code or 0), not isinstance(cause, PipelineError) or cause.agreed


def _write(path: Path, number: int) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(str(number))
    temporary.replace(path)


if __name__ == "__main__":
    ended = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ended)  # past the interpreter's farewell, in which a library may still abort
