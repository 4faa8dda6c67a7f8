"""Addresses of tracking stores: which one a run uses and where a sqlite file lies."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from pipeline.config.schema import Track
from pipeline.errors import ConfigError
from pipeline.redact import redact

_SQLITE = "sqlite:///"
_VARIABLE = "MLFLOW_TRACKING_URI"
_SCHEME = re.compile(r"^(databricks$|(databricks|https?|sqlite|postgresql|mysql|mssql)(\+\w+)?://)")
# File systems that several machines share. 9p and virtiofs are not among them: a virtual machine's own disk may be one.
_NETWORK = re.compile(
    r"^(nfs\d*|cifs|smb\d*|smbfs|lustre|gpfs|beegfs|ceph|wekafs|panfs|pvfs2|orangefs|afs|coda|ocfs2|gfs2"
    r"|fuse\.(sshfs|glusterfs|ceph|juicefs|s3fs|beegfs|weka\S*|rclone))$"
)


def tracking_uri(track: Track, runs_root: Path, env: Mapping[str, str] = os.environ) -> str:
    """Choose the tracking store: `track.uri`, else `$MLFLOW_TRACKING_URI`, else `mlflow.db` in the runs root.

    A sqlite path is made absolute, so that the address means the same from every working directory.

    Raises:
        ConfigError: if what was given is not an address that MLflow can write to.
    """
    source, uri = ("track.uri", track.uri) if track.uri else (f"${_VARIABLE}", env.get(_VARIABLE))
    if not uri:
        return f"{_SQLITE}{runs_root.absolute() / 'mlflow.db'}"
    if not _SCHEME.match(uri):
        raise ConfigError(
            f"{source}: {redact(uri)!r} is not a tracking address; write http://HOST:PORT or sqlite:////PATH/mlflow.db"
        )
    path, _, query = uri.removeprefix(_SQLITE).partition("?")
    if not uri.startswith(_SQLITE) or path in ("", ":memory:"):
        return uri
    return f"{_SQLITE}{Path(path).absolute()}" + (f"?{query}" if query else "")


def sqlite_path(uri: str) -> Path | None:
    """Return the database file of a sqlite address, None for any other address and for a database in memory."""
    path = uri.partition(":///")[2].partition("?")[0]
    return Path(path) if uri.startswith("sqlite") and path not in ("", ":memory:") else None


def refuse_network_disk(uri: str, mounts: Path = Path("/proc/self/mountinfo")) -> None:
    """Refuse a sqlite database on a network file system: its locks don't hold between machines, and it breaks.

    Source: https://www.sqlite.org/faq.html#q5

    Raises:
        ConfigError: naming the file system and the remedy.
    """
    database = sqlite_path(uri)
    kind = _file_system(database, mounts) if database is not None else ""
    if _NETWORK.match(kind):
        raise ConfigError(
            f"track.uri: {database} lies on a network file system ({kind}), where sqlite breaks; start `mlflow server` and set "
            "track.uri=http://HOST:PORT, name a sqlite file on a local disk, or use track.enabled=false and `sync` later"
        )


def _file_system(path: Path, mounts: Path) -> str:
    """Return the type of the file system that a path is, or would be, on; empty where that can't be told."""
    try:
        lines = mounts.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    whole = Path(os.path.realpath(path))
    best, found = -1, ""
    for line in lines:
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].replace("\\040", " "))
        # Of two mounts on the same point the later one is what is seen.
        if whole.is_relative_to(point) and len(point.parts) >= best:
            best, found = len(point.parts), after.split()[0]
    return found
