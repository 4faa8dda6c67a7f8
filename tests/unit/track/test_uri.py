from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.schema import Track
from pipeline.errors import ConfigError
from pipeline.track.uri import redact, refuse_network_disk, sqlite_path, tracking_uri


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pw@host:5000/path", "https://***@host:5000/path"),
        ("https://token@host/path", "https://***@host/path"),
        ("https://me:p@w@host/path", "https://***@host/path"),
        ("postgresql+psycopg2://me:p/w@db/mlflow", "postgresql+psycopg2://***@db/mlflow"),
        ("http://host/api?token=abc&x=1", "http://host/api?token=***&x=1"),
        ("http://host?x=1&Password=abc", "http://host?x=1&Password=***"),
        ("train a.yaml 'track.uri=http://me:pw@h' b@c", "train a.yaml 'track.uri=http://***@h' b@c"),
        ("http://a:b@h and http://c:d@i", "http://***@h and http://***@i"),
        ("sqlite:////runs/mlflow.db", "sqlite:////runs/mlflow.db"),
        ("http://host:5000/a", "http://host:5000/a"),
        ("me@host", "me@host"),
    ],
)
def test_redact_takes_credentials_and_leaves_the_rest(text, shown):
    assert redact(text) == shown
    assert redact(shown) == shown


SECRET = st.text("abcXYZ019!$%&*+:=,;~^()@", min_size=1).map(lambda s: f"SECRET{s}SECRET")


@given(SECRET, SECRET, st.sampled_from(["http", "https", "postgresql", "mysql+pymysql"]))
def test_redact_leaves_nothing_of_user_and_password(user, password, scheme):
    shown = redact(f"failed: {scheme}://{user}:{password}@host:5000/db refused")
    assert shown == f"failed: {scheme}://***@host:5000/db refused"


def test_the_config_comes_before_the_environment_and_that_before_the_runs_root(tmp_path):
    env = {"MLFLOW_TRACKING_URI": "http://env:1"}
    assert tracking_uri(Track(uri="http://cfg:1"), tmp_path, env) == "http://cfg:1"
    assert tracking_uri(Track(), tmp_path, env) == "http://env:1"
    assert tracking_uri(Track(), tmp_path, {}) == f"sqlite:///{tmp_path}/mlflow.db"


def test_sqlite_paths_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(Track(), Path("runs"), {}) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert tracking_uri(Track(uri="sqlite:///a/b.db?timeout=9"), Path("runs"), {}) == f"sqlite:///{tmp_path}/a/b.db?timeout=9"
    assert tracking_uri(Track(uri="sqlite:////a/b.db"), Path("runs"), {}) == "sqlite:////a/b.db"


@pytest.mark.parametrize("uri", ["localhost:5000", "./mlruns", "file:///tmp/mlruns", "htp://x", "databricksx"])
def test_an_address_that_mlflow_cant_write_to_is_refused_naming_where_it_came_from(uri, tmp_path):
    with pytest.raises(ConfigError, match=r"^track.uri: .* is not a tracking address; write http://"):
        tracking_uri(Track(uri=uri), tmp_path, {})
    with pytest.raises(ConfigError, match=r"^\$MLFLOW_TRACKING_URI: "):
        tracking_uri(Track(), tmp_path, {"MLFLOW_TRACKING_URI": uri})


@pytest.mark.parametrize("uri", ["https://h", "http://h:1", "databricks", "databricks://profile", "postgresql+psycopg2://h/d"])
def test_addresses_of_mlflow_are_taken(uri, tmp_path):
    assert tracking_uri(Track(uri=uri), tmp_path, {}) == uri


def test_sqlite_path_is_the_database_file():
    assert sqlite_path("sqlite:////a/b.db?x=1") == Path("/a/b.db")
    assert sqlite_path("http://h/sqlite:///x") is None


MOUNTS = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:40 / /home rw,relatime shared:2 - nfs4 server:/home rw,vers=4.2
31 30 0:41 / /home/me/local rw,relatime - tmpfs tmpfs rw
32 21 0:42 / /with\\040space rw,relatime - lustre mgs@tcp:/fs rw
33 21 0:43 / /over rw,relatime - nfs server:/x rw
34 21 0:44 / /over rw,relatime - xfs /dev/sdb rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/runs/mlflow.db", "nfs4"),
        ("/with space/mlflow.db", "lustre"),
        ("/home/me/local/mlflow.db", None),
        ("/homework/mlflow.db", None),
        ("/over/mlflow.db", None),
    ],
)
def test_sqlite_on_a_network_disk_is_refused(tmp_path, path, kind):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    if kind is None:
        refuse_network_disk(f"sqlite:///{path}", mounts)
        return
    with pytest.raises(ConfigError, match=rf"network file system \({kind}\).*track.uri=http://HOST:PORT"):
        refuse_network_disk(f"sqlite:///{path}", mounts)
    refuse_network_disk("http://host:5000", mounts)


def test_this_machines_own_disks_are_fine(tmp_path):
    refuse_network_disk(f"sqlite:///{tmp_path / 'mlflow.db'}")
    refuse_network_disk(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "no-such-file")
