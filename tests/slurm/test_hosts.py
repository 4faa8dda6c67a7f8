"""SLURM on nodes that are hosts of their own, with a network between them that can be cut."""

import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.timeout(900)


def test_a_node_whose_cable_is_pulled(hosts: Any, calm: Any, digits: Path, shared: Path) -> None:
    training = sys.modules["cluster"].Training.submit(hosts, digits, shared, "cable", ())
    training.reaches(60)
    hosts.network.cable("node2", "down")
    training.cluster.wait(training.job_id, "PENDING")
    hosts.network.cable("node2", "up")
    training.finished()
    (requeue,) = training.requeues()
    assert "lost node" in requeue["reason"] and training.resumed()[0] >= 50
    one, other = load_file(training.run_dir / "model.safetensors"), load_file(calm.run_dir / "model.safetensors")
    far = {name: float((one[name] - other[name]).abs().max() / other[name].abs().max()) for name in other}
    assert max(far.values()) <= 1e-9, far
