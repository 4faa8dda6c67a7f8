"""Addresses of tracking stores: which one a run uses and where a sqlite file lies.

Not here: talking to a store (`pipeline.track.shipper`).
"""

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
    """Return the database file of a sqlite address, None for any other address."""
    if not uri.startswith("sqlite"):
        return None
    return Path(uri.partition(":///")[2].partition("?")[0])
