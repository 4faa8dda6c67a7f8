"""Staging: from folders and URLs, once, resumed, and compared."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import fsspec
import pytest

from pipeline.config import Config
from pipeline.data import stage as staging
from pipeline.data.dataset import open_dataset
from pipeline.data.index import open_index
from pipeline.data.pack import Settings, check, pack
from pipeline.data.stage import stage
from pipeline.errors import DataError
from pipeline.world import World


@pytest.fixture
def packed(small: Path, tmp_path: Path) -> Path:
    pack(small, tmp_path / "packed", Settings(shard_images=2), tmp_path / "cache", 1)
    return tmp_path / "packed"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(packed: Path) -> Iterator[str]:
    """The address of a web server on this machine that serves the pack."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(packed))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_folder_is_staged_once(small: Path, tmp_path: Path) -> None:
    target = tmp_path / "node"
    assert stage(str(small), target).copied == 12
    assert stage(str(small), target).copied == 0
    index = open_index(target, "train", tmp_path / "cache")
    assert [index.read(k) for k in range(6)] == [path.read_bytes() for path in sorted((small / "train").glob("*/*"))]


def test_a_pack_is_staged_from_a_web_server(served: str, packed: Path, tmp_path: Path) -> None:
    found = stage(served, tmp_path / "node")
    assert found.files == found.copied == 2 * (3 + 11)
    assert check(tmp_path / "node", 1)["images"] == 12


def test_a_pack_is_staged_from_an_object_store(packed: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(packed), "/bucket/pack", recursive=True)
    try:
        stage("memory://bucket/pack", tmp_path / "node")
    finally:
        memory.rm("/bucket", recursive=True)
    assert check(tmp_path / "node", 1)["images"] == 12


def test_staging_goes_on_where_it_was_interrupted(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy, names = staging._copy, iter(range(5))

    def interrupted(source: staging._Source, name: str, path: Path) -> str:
        if next(names, None) is None:
            raise OSError(5, "Input/output error")
        return copy(source, name, path)

    monkeypatch.setattr(staging, "_THREADS", 1)
    monkeypatch.setattr(staging, "_copy", interrupted)
    with pytest.raises(DataError, match="Input/output error; the same command goes on where it was"):
        stage(str(small), tmp_path / "node")
    monkeypatch.setattr(staging, "_copy", copy)
    assert stage(str(small), tmp_path / "node").copied == 7


def test_a_copy_that_differs_is_refused(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look = staging._look

    def longer(source: str) -> staging._Source:
        found = look(source)
        return staging._Source(found.fs, found.base, {name: size + 1 for name, size in found.sizes.items()})

    monkeypatch.setattr(staging, "_look", longer)
    with pytest.raises(DataError, match="the copy differs from the source"):
        stage(str(packed), tmp_path / "node")
    assert not (tmp_path / "node" / ".staged.json").exists()


def test_a_file_that_vanished_from_the_node_is_copied_again(packed: Path, tmp_path: Path) -> None:
    stage(str(packed), tmp_path / "node")
    (tmp_path / "node" / "val" / "val-000001.tar").unlink()
    assert stage(str(packed), tmp_path / "node").files == 28
    assert check(tmp_path / "node", 1)["images"] == 12


@pytest.mark.parametrize("source", ["nosuch://x/y", "/no/such/folder"])
def test_sources_that_can_t_be_read(source: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"staging {source}"):
        stage(source, tmp_path / "node")


def test_names_outside_of_the_source_are_refused(packed: Path, tmp_path: Path) -> None:
    meta = packed / "train" / "index" / "meta.json"
    found = json.loads(meta.read_text())
    (tmp_path / "outside").write_text("x")
    meta.write_text(json.dumps(found | {"shards": ["../../outside"]}))
    with pytest.raises(DataError, match="outside of itself"):
        stage(str(packed), tmp_path / "node")


def test_training_stages_its_data_first(small: Path, config: Callable[..., Config], tmp_path: Path) -> None:
    node = tmp_path / "node"
    data = open_dataset(config(f"data.root={small}", f"data.stage_to={node}"), World())
    assert data.train.folder == node / "train"
    assert len(data.train) == 6
    data = open_dataset(config(f"data.stage_from=file://{small}", f"data.stage_to={tmp_path / 'other'}"), World())
    assert data.val.folder == tmp_path / "other" / "val"
    with pytest.raises(DataError, match=r"data.stage_from: needs data.stage_to"):
        open_dataset(config(f"data.stage_from=file://{small}"), World())
