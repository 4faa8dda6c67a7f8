"""Training processes on this machine alone."""

from collections.abc import Sequence

from launch import agent


def run(arguments: Sequence[str], nproc: int | None = None) -> int:
    """Run `python -m pipeline train ARGUMENTS` in `nproc` processes; return the exit code (see `agent.run`)."""
    return agent.run(agent.Group(agent.processes(nproc)), arguments)
