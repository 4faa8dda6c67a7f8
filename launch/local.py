"""Training processes on this machine, under torchrun's elastic agent.

Not here: what the processes do.
"""

import logging
import os
import sys
import uuid
from collections.abc import Sequence

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def run(arguments: Sequence[str], nproc: int | None = None) -> int:
    """Run `python -m pipeline train ARGUMENTS` in `nproc` processes; return the exit code of the first that failed, else 0."""
    nproc = nproc or max(1, torch.cuda.device_count())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the workers say what went wrong
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="spawn",
    )
    try:
        elastic_launch(config, sys.executable)("-u", "-m", "pipeline", "train", *arguments)
    except ChildFailedError as error:
        return _exit_code(error)
    except SignalException as error:
        return 128 + error.sigval
    return 0


def _exit_code(error: ChildFailedError) -> int:
    """Return the worker's own code; one that died of a signal counts as 128 + signal, as in a shell."""
    codes = [failure.exitcode for failure in error.failures.values()]
    first = error.get_first_failure()[1].exitcode
    chosen = next((code for code in codes if code == 2), first)
    return chosen if chosen >= 0 else 128 - chosen
