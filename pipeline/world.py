"""The world: this process's rank among the processes that train together, its device, and their collectives.

The only module that touches torch.distributed or reads RANK and SLURM_* from the environment.
"""

import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from pipeline import rollcall
from pipeline.errors import PeerLost, PipelineError, Stopped, TransientError, WorldError
from pipeline.rollcall import Roll

T = TypeVar("T")
_NOTHING_BEGUN = "stopped by a signal before training began; nothing had to be saved, start the same command again"
_SIGN_OF_LIFE_S = 0.2
"""How often those who wait for rank 0 hear of it; far below any sensible `dist.timeout_s`."""
_JOIN_WHEN_STOPPED_S = 10.0
"""How long a rank that was asked to stop still waits for the others, to leave together with them."""
_LOST = re.compile(r"(?i)timed? ?out|timeout|connection|broken pipe|gloo|nccl|socket")
_WORK = "work"
_PORTS = (15000, 5000)  # below those that Linux hands out by itself, and beside those of `launch`
_SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_ID", "SLURM_STEP_NODELIST")
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """One process among `size`; a world of any rank and size can be made for tests of what depends on them.

    `address` is HOST:PORT of rank 0 where torch doesn't find it in the environment (srun); a joined world has a `roll`.
    `asked` tells, while a training starts, whether this process was asked to stop; None from then on.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device = torch.device("cpu")
    joined: bool = False
    address: str = ""
    roll: Roll | None = None
    asked: Callable[[], bool] | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add `tensor` up over all ranks, in place, and return it."""
        if self.joined:
            dist.all_reduce(tensor)
        return tensor

    def sum_later(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Start adding `tensor` up in place; the returned function waits for the sum and returns it."""
        work = dist.all_reduce(tensor, async_op=True) if self.joined else None

        def summed() -> Tensor:
            if work is not None:
                work.wait()
            return tensor

        return summed

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        if self.joined:
            self.sum_(torch.zeros(1, device=self.device))

    def any_(self, flag: bool) -> bool:
        """Return on every rank whether the flag is set on any."""
        return bool(self.sum_(torch.tensor([float(flag)], device=self.device)))

    def leave_if_asked(self) -> None:
        """Leave together, if any rank was asked to stop while the training starts.

        Raises:
            Stopped: on every rank.
        """
        if self.asked is not None and self.any_(self.asked()):
            raise Stopped(_NOTHING_BEGUN)

    def from_main(self, value: Any) -> Any:
        """Return rank 0's `value`, which JSON must be able to hold, on every rank."""
        if not self.joined:
            return value
        data = list(json.dumps(value).encode()) if self.is_main else []
        length = torch.tensor([len(data)], device=self.device)
        dist.broadcast(length, 0)
        body = torch.tensor(data, dtype=torch.uint8, device=self.device) if self.is_main else None
        if body is None:
            body = torch.empty(int(length), dtype=torch.uint8, device=self.device)
        dist.broadcast(body, 0)
        return json.loads(bytes(body.tolist()))

    def gather(self, value: Any) -> list[Any]:
        """Return each rank's `value`, which JSON must be able to hold, in the order of ranks and on every rank."""
        if not self.joined:
            return [value]
        data = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=self.device)
        lengths = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        lengths[self.rank] = len(data)
        known = [int(n) for n in self.sum_(lengths)]
        table = torch.zeros(self.size, max(known), dtype=torch.uint8, device=self.device)
        table[self.rank, : len(data)] = data
        return [json.loads(bytes(row[:n])) for row, n in zip(self.sum_(table).tolist(), known, strict=True)]

    def together(self, work: Callable[[], T]) -> T:
        """Run `work` on every rank and leave together if it fails anywhere; it must not exchange anything itself.

        Raises:
            Exception: on every rank when `work` raised on any: its own error on the first rank that
                failed, a PipelineError without a message on the others, so that it is told once.
            Stopped: on every rank, if any was asked to stop while the training starts; `work` is not waited for then.
        """
        if self.asked is not None:
            future = _in_a_thread(work, self.device)
            while self.any_(not wait([future], timeout=_SIGN_OF_LIFE_S).done):
                self.leave_if_asked()
            work = future.result
        error: Exception | None = None
        result: T | None = None
        try:
            result = work()
        except Exception as failed:
            if not self.joined:
                raise
            error = failed
        codes = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        codes[self.rank] = getattr(error, "exit_code", 1) if error else 0
        bad = self.sum_(codes).nonzero().flatten().tolist()
        if not bad:
            return result  # type: ignore[return-value]
        if error is not None and bad[0] == self.rank:
            raise error
        silent = PipelineError("")
        silent.exit_code = int(codes[bad[0]])
        raise silent

    def main_first(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0, then on the others, who find what it left on disk. It may take any time.

        Raises:
            PipelineError: on every rank when it was raised on any, as `together` does.
            Stopped: on every rank, if any was asked to stop while the training starts; `work` is not waited for then.
        """
        if not self.joined and self.asked is None:
            return work()
        if self.is_main:
            future = _in_a_thread(work, self.device)
            while not self.any_(bool(wait([future], timeout=_SIGN_OF_LIFE_S).done)):
                self.leave_if_asked()
            return self._both(future.result, after=False)
        while not self.any_(False):  # the exchange itself is the sign that rank 0 is alive
            self.leave_if_asked()
        return self._both(work, after=True)

    def _both(self, work: Callable[[], T], after: bool) -> T:
        """Run `work` in the first round, or in the second; leave together if it fails in either."""
        first = self.together(lambda: None if after else work())
        second = self.together(lambda: work() if after else None)
        return second if after else first  # type: ignore[return-value]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turn a collective that failed in the `with` block into an error that names the ranks that fell silent.

        Raises:
            PeerLost: on every rank that is left; only the first of them carries the message.
        """
        try:
            yield
        except RuntimeError as error:
            if self.roll is None or not _LOST.search(str(error)):
                raise
            leave = dist.destroy_process_group if self.device.type == "cpu" else lambda: None
            raise PeerLost(rollcall.call(self.roll, error, leave)) from error

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model under DistributedDataParallel, or itself in a world of one.

        Buffers are not exchanged: batch-norm statistics are averaged instead (`train.batchnorm`).
        """
        if not self.joined:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, forward_sync_buffers=False, gradient_as_bucket_view=True)


def from_env(env: Mapping[str, str] = os.environ) -> World:
    """Tell this process's place from torchrun's variables, else from srun's, else be a world of one.

    Raises:
        WorldError: if the variables are half set or contradict each other.
    """
    found = [name for name in _TORCHRUN if name in env]
    if not {"RANK", "WORLD_SIZE"} & set(found):
        return _from_slurm(env) if "SLURM_STEP_ID" in env else World(device=_device(0))
    missing = [name for name in _TORCHRUN if name not in env]
    if missing:
        raise WorldError(
            f"environment: {', '.join(found)} set but not {', '.join(missing)}; start with torchrun, or unset them"
        )
    rank, size, local_rank = (_whole(env, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if not (0 <= rank < size and 0 <= local_rank <= rank):
        raise WorldError(
            f"environment: RANK={rank}, WORLD_SIZE={size}, LOCAL_RANK={local_rank} contradict each other; start with torchrun"
        )
    local_size = _whole(env, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in env else 1
    return World(rank, size, local_rank, local_size, _device(local_rank))


def _from_slurm(env: Mapping[str, str]) -> World:
    """Tell this process's place among the tasks of one srun. Source: srun(1), output environment variables."""
    if env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1")) == "1":
        return World(device=_device(0))
    missing = [name for name in _SLURM if name not in env]
    if missing:
        raise WorldError(f"environment: SLURM_STEP_ID set but not {', '.join(missing)}; start with srun, or unset it")
    rank, size, local_rank, node = (_whole(env, name) for name in _SLURM[:4])
    if not (0 <= rank < size and 0 <= local_rank <= rank):
        raise WorldError(
            f"environment: SLURM_PROCID={rank}, SLURM_STEP_NUM_TASKS={size}, SLURM_LOCALID={local_rank} "
            "contradict each other; start with srun"
        )
    per_node = _tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    local_size = per_node[node] if node < len(per_node) else 1
    # With --gpus-per-task each task sees its own GPU alone, and that is number 0.
    bound = "SLURM_GPUS_PER_TASK" in env or "SLURM_GPU_BIND" in env
    return World(rank, size, local_rank, local_size, _device(0 if bound else local_rank), address=_meeting_point(env))


def _tasks_per_node(text: str) -> list[int]:
    """Expand `2(x3),1` to 2, 2, 2, 1."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(n) for n, times in found for _ in range(int(times or 1))]


def _meeting_point(env: Mapping[str, str]) -> str:
    """Return HOST:PORT of rank 0: the step's first node, at a port that its other steps and jobs don't use."""
    first = re.sub(r"\[(\d+).*", r"\1", env["SLURM_STEP_NODELIST"].split(",")[0])
    try:
        socket.getaddrinfo(first, None)
    except OSError:  # nodes that are not hosts by name: srun in a batch script runs on the first of them
        first = env.get("SLURM_LAUNCH_NODE_IPADDR", first)
    start, many = _PORTS
    port = start + (_whole(env, "SLURM_JOB_ID") * 31 + _whole(env, "SLURM_STEP_ID")) % many
    return f"{env.get('MASTER_ADDR', first)}:{env.get('MASTER_PORT', port)}"


def _whole(env: Mapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except ValueError as error:
        raise WorldError(f"environment: {name}={env[name]!r} is not a whole number; start with torchrun") from error


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    n = torch.cuda.device_count()
    if local_rank >= n:
        raise WorldError(f"local rank {local_rank} has no GPU of its own ({n} on this node); start {n} processes a node")
    return torch.device("cuda", local_rank)


def backends() -> list[str]:
    """Return the ways to exchange that this torch has and this machine can use."""
    found = ["gloo"] if dist.is_available() and dist.is_gloo_available() else []
    return found + (["nccl"] if torch.cuda.is_available() and dist.is_nccl_available() else [])


def _use(device: torch.device) -> None:
    """Make a GPU the current one of this thread."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _in_a_thread(work: Callable[[], T], device: torch.device) -> Future[T]:
    """Run `work` in a thread that nobody has to wait for at the end of the process (see `leave`)."""
    future: Future[T] = Future()

    def run() -> None:
        _use(device)
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=_WORK, daemon=True).start()
    return future


@contextmanager
def join(world: World, *, backend: str = "auto", timeout_s: float = 300) -> Iterator[World]:
    """Form the process group for the time of the `with` block and yield the joined world.

    Raises:
        WorldError: if the group can't be formed because of what was asked for, such as a port in use.
        PeerLost: if a peer does not come, or goes.
        Stopped: if this process is asked to stop, on every rank or, if the others don't come soon, on this one.
        TransientError: if the port of an srun step is in use.
    """
    _use(world.device)
    if world.size == 1:
        world.leave_if_asked()
        yield world
        return
    chosen = backend if backend != "auto" else ("nccl" if world.device.type == "cuda" else "gloo")
    joined = _await_peers(world, lambda: _init(world, chosen, timeout_s))
    with joined.watched():
        joined.leave_if_asked()
        yield joined
    # Not after an error: a rank that has failed alone must not wait for the others, but exit, which they notice.
    dist.destroy_process_group()


def _await_peers(world: World, init: Callable[[], World]) -> World:
    """Return what `init` returns; it waits in C++, where no signal is acted on, and therefore in a thread.

    Raises:
        Stopped: if this process is asked to stop and the others don't come soon.
    """
    if world.asked is None:
        return init()
    future = _in_a_thread(init, world.device)
    deadline: float | None = None
    while not wait([future], timeout=_SIGN_OF_LIFE_S).done:
        if deadline is None and world.asked():
            deadline = time.monotonic() + _JOIN_WHEN_STOPPED_S
        if deadline is not None and time.monotonic() > deadline:
            raise Stopped(_NOTHING_BEGUN)
    return future.result()


def leave(code: int) -> None:
    """End a process that an error has left in its group, or a stop at work, at once, with what it has printed.

    The group's threads abort now and then a process that is taken down around them ("terminate called without an active
    exception"), and the exit code that says why it ended would be lost. Returns where there is no group and no work.
    """
    at_work = any(thread.name == _WORK for thread in threading.enumerate())
    if at_work or (dist.is_available() and dist.is_initialized()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _init(world: World, backend: str, timeout_s: float) -> World:
    """Form the process group; return the joined world."""
    address = world.address or f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
    if backend == "nccl" and world.device.type != "cuda":
        raise WorldError("dist.backend: nccl needs GPUs and this process has none; use dist.backend=gloo")
    timeout = timedelta(seconds=timeout_s)
    method = f"tcp://{world.address}" if world.address else "env://"
    try:
        store, _, _ = next(rendezvous(method, world.rank, world.size, timeout=timeout))
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            # torchrun keeps one store over its restarts, with the addresses of the processes before.
            store = PrefixStore(f"restart_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        roll = Roll(world.rank, world.size, store, address)
        rollcall.sign_in(roll)
        dist.init_process_group(
            backend,
            timeout=timeout,
            rank=world.rank,
            world_size=world.size,
            store=PrefixStore("default_pg", store),
            device_id=world.device if backend == "nccl" else None,
        )
    except (RuntimeError, ValueError, OSError) as error:
        text = str(error)
        if "EADDRINUSE" in text or "address already in use" in text.lower():
            kind = TransientError if world.address else WorldError  # srun's port is made of the job's id: whoever has it goes
            raise kind(f"{address}: the port is in use; choose another with --master-port, or torchrun --standalone") from error
        raise PeerLost(
            f"{address}: rank {world.rank} of {world.size} could not join within {timeout_s:g} s "
            f"(host {socket.gethostname()}): {text.splitlines()[0]}"
        ) from error
    return replace(world, joined=True, roll=roll)
