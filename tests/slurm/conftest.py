"""A cluster of one's own for these tests; where none can be started they are skipped with the reason."""

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


cluster_module = _load("cluster")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, or fail where CI promises that everything is installed."""
    reason = cluster_module.missing()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            if reason and not os.environ.get("SLURM_TESTS_MUST_RUN"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """Two nodes on this host."""
    assert not cluster_module.missing(), cluster_module.missing()
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    found = cluster_module.Cluster(folder)
    try:
        found.start()
        yield found
    finally:
        found.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def hosts() -> Iterator[Any]:
    """Two nodes on hosts of their own, with cables that can be pulled."""
    assert not cluster_module.missing(), cluster_module.missing()
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    found = cluster_module.Cluster(folder)
    found.network = cluster_module.Network(found.names)
    try:
        found.network.start()
        found.start()
        yield found
    finally:
        found.stop()
        found.network.remove()
        shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _clear(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave the queue empty to the next test."""
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").clear()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands for a shared file system: runs, and the tracking store."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def submit(cluster: Any, digits: Path, shared: Path) -> Callable[..., Any]:
    """Submit a training of 2 nodes x 2 processes under a name; returns `Training`."""

    def call(name: str, *more: str) -> Any:
        return cluster_module.Training.submit(cluster, digits, shared, name, more)

    return call


@pytest.fixture(scope="session")
def calm(cluster: Any, digits: Path, shared: Path) -> Any:
    """The training that nothing happens to, submitted like all others."""
    found = cluster_module.Training.submit(cluster, digits, shared, "calm", ("track.model=true", "track.pictures=true"))
    found.finished()
    return found
