"""How busy the nodes are, brought together on rank 0: one process of each node samples it."""

from types import TracebackType
from typing import Self

import torch

from pipeline.track.system import KEYS, Sampler
from pipeline.world import World


class Machines:
    """The nodes of a run while it trains; `every_s` None samples nothing."""

    def __init__(self, world: World, every_s: float | None) -> None:
        self._world, self._on = world, every_s is not None
        self._sampler = Sampler(every_s, _gpus(world)) if every_s is not None and world.local_rank == 0 else None

    def __enter__(self) -> Self:
        if self._sampler is not None:
            self._sampler.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._sampler is not None:
            self._sampler.close()

    def gather(self) -> tuple[dict[str, float], float]:
        """Return `system/nodeN/KEY` for all nodes and the energy that their GPUs used (J), both since the last call.

        A collective: every rank calls it, and gets the same.
        """
        if not self._on:
            return {}, 0.0
        world = self._world
        nodes = -(-world.size // world.local_size)
        table = torch.zeros(nodes, len(KEYS) + 1, 2, dtype=torch.float64, device=world.device)
        if self._sampler is not None:
            means, energy_j = self._sampler.take()
            values = [[means.get(key, 0.0), float(key in means)] for key in KEYS]
            table[world.rank // world.local_size] = torch.tensor([*values, [energy_j, 1.0]], dtype=torch.float64)
        rows = world.sum_(table).tolist()
        found = {
            f"system/node{node}/{key}": value
            for node, row in enumerate(rows)
            for key, (value, known) in zip(KEYS, row, strict=False)
            if known
        }
        return found, sum(row[-1][0] for row in rows)


def _gpus(world: World) -> list[str]:
    """Return the UUIDs of the GPUs of this node's ranks, in the driver's notation; none on a CPU."""
    if world.device.type != "cuda":
        return []
    return [f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in range(world.local_size)]
