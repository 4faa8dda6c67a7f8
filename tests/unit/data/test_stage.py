"""Staging: from folders and URLs, once, resumed, and compared."""

import http.server
import json
import os
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


def test_a_folder_is_staged_from_a_web_server_that_lists_folders(small: Path, tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(small))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        found = stage(f"http://127.0.0.1:{server.server_port}", tmp_path / "node")
        server.shutdown()
        thread.join()
    assert found.files == found.copied == 12
    assert (tmp_path / "node" / "val" / "dog" / "2.jpg").read_bytes() == (small / "val" / "dog" / "2.jpg").read_bytes()


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

    def longer(*given: object) -> staging._Source:
        found = look(*given)  # type: ignore[arg-type]
        files = {name: file._replace(size=file.size + 1) for name, file in found.files.items()}
        return staging._Source(found.fs, found.base, files, found.version)

    monkeypatch.setattr(staging, "_look", longer)
    with pytest.raises(DataError, match="the copy differs from the source"):
        stage(str(packed), tmp_path / "node")
    assert not (tmp_path / "node" / ".staged.json").exists()


def test_a_file_that_vanished_from_the_node_is_copied_again(packed: Path, tmp_path: Path) -> None:
    stage(str(packed), tmp_path / "node")
    (tmp_path / "node" / "val" / "val-000001.tar").unlink()
    assert stage(str(packed), tmp_path / "node").files == 28
    assert check(tmp_path / "node", 1)["images"] == 12


def test_a_changed_folder_is_copied_again_in_part(small: Path, tmp_path: Path) -> None:
    node = tmp_path / "node"
    stage(str(small), node)
    (small / "train" / "cat" / "new.jpg").write_bytes(b"new")
    (small / "train" / "cat" / "0.jpg").unlink()
    (small / "train" / "dog" / "0.jpg").write_bytes((small / "train" / "dog" / "1.jpg").read_bytes())
    found = stage(str(small), node)
    assert (found.files, found.copied) == (12, 2)
    mine, theirs = ({str(p.relative_to(r)): p.read_bytes() for p in r.rglob("*.jpg")} for r in (node, small))
    assert mine == theirs


def test_a_changed_pack_is_copied_again(small: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    try:
        for quality in (90, 40):
            out = tmp_path / f"packed {quality}"
            pack(small, out, Settings(short_side=20, quality=quality), tmp_path / "cache", 1)
            memory.put(str(out) + "/", "/bucket/pack", recursive=True)
            assert stage("memory://bucket/pack", tmp_path / "node").copied == 2 * (1 + 11)
            assert stage("memory://bucket/pack", tmp_path / "node").copied == 0
            assert (tmp_path / "node" / "val" / "val-000000.tar").read_bytes() == (out / "val" / "val-000000.tar").read_bytes()
    finally:
        memory.rm("/bucket", recursive=True)


def test_a_source_that_is_gone_does_not_matter_once_all_is_there(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(packed))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        stage(address, tmp_path / "node")
        server.shutdown()
        thread.join()
    assert stage(address, tmp_path / "node").copied == 0
    assert f"warning: {address}: " in capsys.readouterr().err
    with pytest.raises(DataError, match=r"staging http://127.+; the same command goes on where it was") as failed:
        stage(address, tmp_path / "other")
    assert "\n" not in str(failed.value)


def test_sources_are_not_mixed(small: Path, packed: Path, tmp_path: Path) -> None:
    node = tmp_path / "node"
    stage(str(small), node)
    with pytest.raises(DataError, match=f"node: holds a copy of {small}; choose another folder"):
        stage(str(packed), node)
    (tmp_path / "own" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"own: holds files that were not staged \(train\)"):
        stage(str(packed), tmp_path / "own")


def test_what_was_staged_can_be_staged_on(small: Path, tmp_path: Path) -> None:
    stage(str(small), tmp_path / "node")
    assert stage(str(tmp_path / "node"), tmp_path / "other").files == 12


@pytest.mark.parametrize("target", ["", "inside", ".."])
def test_a_folder_is_not_staged_into_itself(target: str, small: Path) -> None:
    with pytest.raises(DataError, match="one lies in the other"):
        stage(str(small), small / target)


def test_odd_entries_are_told_of_and_odd_names_copied(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cat = small / "train" / "cat"
    os.mkfifo(cat / "pipe.jpg")
    (cat / "nowhere.jpg").symlink_to("no such file")
    (cat / "no utf \udcff\nbut a line.jpg").write_bytes(b"x")
    (small / "train" / "linked").symlink_to(cat)
    assert stage(str(small), tmp_path / "node").files == 12 + 1 + 4
    assert "4 entries that no file is behind: train/" in capsys.readouterr().err.splitlines()[0]
    assert (tmp_path / "node" / "train" / "linked" / "no utf \udcff\nbut a line.jpg").read_bytes() == b"x"
    (cat / "loop").symlink_to(".")
    with pytest.raises(DataError, match="is a link to a folder that it lies in"):
        stage(str(small), tmp_path / "other")


def test_a_missing_implementation_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(DataError) as failed:
        stage("s3://bucket/pack", tmp_path / "node")
    reason = "Install s3fs to access S3; run `pip install s3fs`, or copy it to a folder"
    assert str(failed.value) == f"staging s3://bucket/pack: {reason}"


def test_errors_without_words_have_a_line_too(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(staging, "_look", late)
    with pytest.raises(DataError, match="TimeoutError; the same command goes on"):
        stage(str(packed), tmp_path / "node")


@pytest.mark.parametrize("source", ["nosuch://x/y", "/no/such/folder", "", "http://127.0.0.1:9/pack"])
def test_sources_that_can_t_be_read(source: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"staging.*{source}"):
        stage(source, tmp_path / "node")


def test_names_outside_of_the_source_are_refused(packed: Path, tmp_path: Path) -> None:
    meta = packed / "train" / "index" / "meta.json"
    found = json.loads(meta.read_text())
    (tmp_path / "outside").write_text("x")
    meta.write_text(json.dumps(found | {"shards": ["../../outside"]}))
    with pytest.raises(
        DataError, match="the index of this pack is broken .meta.json: shards.0: leads out of the folder.; make the pack again"
    ):
        stage(str(packed), tmp_path / "node")


@pytest.mark.parametrize("path", ["/elsewhere/0.jpg", "../elsewhere/0.jpg", "train/../../0.jpg"])
def test_a_list_of_images_that_would_not_be_copied_is_refused(path: str, small: Path, tmp_path: Path) -> None:
    (small / "train.csv").write_text(f"path,label\ntrain/cat/0.jpg,cat\n{path},dog\n")
    with pytest.raises(DataError, match=rf"train.csv lists 1 image outside of the folder \({path}\), which would stay"):
        stage(str(small), tmp_path / "node")
    assert not list((tmp_path / "node").glob("train*"))
    (small / "..cat").mkdir()  # an ordinary name
    (small / "train" / "cat" / "0.jpg").rename(small / "..cat" / "0.jpg")
    (small / "train.csv").write_text("path,label\n..cat/0.jpg,cat\n./val/../train/dog/0.jpg,dog\n")
    assert stage(str(small), tmp_path / "node").files == 13


def test_training_stages_its_data_first(small: Path, config: Callable[..., Config], tmp_path: Path) -> None:
    node = tmp_path / "node"
    data = open_dataset(config(f"data.root={small}", f"data.stage_to={node}"), World())
    assert data.train.folder == node / "train"
    assert len(data.train) == 6
    data = open_dataset(config(f"data.stage_from=file://{small}", f"data.stage_to={tmp_path / 'other'}"), World())
    assert data.val.folder == tmp_path / "other" / "val"
    with pytest.raises(DataError, match=r"data.stage_from: needs data.stage_to"):
        open_dataset(config(f"data.stage_from=file://{small}"), World())
