"""How busy this node is while the run lives: processor, memory, disk, network, and the job's own GPUs.

A reading that fails is left out; it never raises.
"""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psutil

KEYS = (
    "cpu",
    "memory_gb",
    "process_gb",
    "disk_read_mb_s",
    "disk_write_mb_s",
    "net_mb_s",
    "gpu",
    "gpu_memory_gb",
    "gpu_watts",
    "gpu_celsius",
)
"""What is sampled: `cpu` and `gpu` are fractions, means over cores and over the job's GPUs; `memory_gb` is the node's,
`process_gb` this process's with its children; `gpu_memory_gb` and `gpu_celsius` are of the fullest and hottest GPU, `gpu_watts`
of all of the job's together."""
_GB, _MB = 1e9, 1e6


class Sampler:
    """A background thread that takes a sample every `every_s` seconds; `take` returns the means since it was last asked."""

    def __init__(self, every_s: float, gpu_uuids: Sequence[str] = ()) -> None:
        """Sample nothing yet. `gpu_uuids` are those of the GPUs that the job uses on this node."""
        self._every_s = every_s
        self._gpus = Gpus(gpu_uuids)
        self._process = psutil.Process()
        self._samples: list[dict[str, float]] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._before = _counters()
        self._thread = threading.Thread(target=self._work, name="system-sampler", daemon=True)

    def start(self) -> None:
        """Start to sample."""
        psutil.cpu_percent()  # the first call only sets the beginning of the interval, here that of `take`
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._gpus.close()

    def take(self) -> tuple[dict[str, float], float]:
        """Return the mean of each of `KEYS` that could be read since the last call, and the GPUs' energy since then in J."""
        with self._lock:
            if not self._samples:
                self._samples.append(self._sample())
            samples, self._samples = self._samples, []
            energy_j = self._gpus.energy_j()
        found = {key: [s[key] for s in samples if key in s] for key in KEYS}
        return {key: sum(values) / len(values) for key, values in found.items() if values}, energy_j

    def _work(self) -> None:
        psutil.cpu_percent()  # it keeps the beginning of the interval for each thread
        while not self._stop.wait(self._every_s):
            with self._lock:
                self._samples.append(self._sample())

    def _sample(self) -> dict[str, float]:
        found = self._gpus.sample()
        with suppress(OSError, psutil.Error):
            found |= {"cpu": psutil.cpu_percent() / 100, "memory_gb": psutil.virtual_memory().used / _GB}
            found["process_gb"] = self._resident() / _GB
        now = _counters()
        passed = max(now["t"] - self._before["t"], 1e-9)
        found |= {key: (now[key] - self._before[key]) / passed / _MB for key in now if key != "t" and key in self._before}
        self._before = now
        return found

    def _resident(self) -> int:
        total = self._process.memory_info().rss
        for child in self._process.children(recursive=True):
            with suppress(psutil.Error):
                total += child.memory_info().rss
        return int(total)


def _counters() -> dict[str, float]:
    """Return bytes moved since the machine started, and when that was read in seconds."""
    found: dict[str, float] = {"t": time.monotonic()}
    with suppress(OSError, psutil.Error, RuntimeError):
        disk, net = psutil.disk_io_counters(), psutil.net_io_counters()
        if disk is not None:
            found |= {"disk_read_mb_s": float(disk.read_bytes), "disk_write_mb_s": float(disk.write_bytes)}
        found["net_mb_s"] = float(net.bytes_sent + net.bytes_recv)
    return found


class Gpus:
    """The GPUs with the given UUIDs, read by NVML; none where there is no NVIDIA driver."""

    def __init__(self, uuids: Sequence[str]) -> None:
        """Open NVML if there is anything to read."""
        self._handles: list[Any] = []
        self._energy_mj: float | None = None
        if not uuids:
            return
        import pynvml

        self._nvml = pynvml
        with suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            self._handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
        self._energy_mj = self._total_mj()

    def sample(self) -> dict[str, float]:
        """Return utilisation, memory, power and temperature as `KEYS` says."""
        if not self._handles:
            return {}
        nvml = self._nvml
        found: dict[str, float] = {}
        with suppress(nvml.NVMLError):
            found["gpu"] = sum(nvml.nvmlDeviceGetUtilizationRates(h).gpu for h in self._handles) / len(self._handles) / 100
            found["gpu_memory_gb"] = max(nvml.nvmlDeviceGetMemoryInfo(h).used for h in self._handles) / _GB
            found["gpu_celsius"] = max(nvml.nvmlDeviceGetTemperature(h, nvml.NVML_TEMPERATURE_GPU) for h in self._handles)
            found["gpu_watts"] = sum(nvml.nvmlDeviceGetPowerUsage(h) for h in self._handles) / 1000
        return found

    def energy_j(self) -> float:
        """Return the energy used since the last call in joules, 0 where it can't be read."""
        before, self._energy_mj = self._energy_mj, self._total_mj()
        return 0.0 if before is None or self._energy_mj is None else (self._energy_mj - before) / 1000

    def close(self) -> None:
        """Let go of NVML."""
        if self._handles:
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
            self._handles = []

    def _total_mj(self) -> float | None:
        if not self._handles:
            return None
        with suppress(self._nvml.NVMLError):
            return float(sum(self._nvml.nvmlDeviceGetTotalEnergyConsumption(h) for h in self._handles))
        return None
