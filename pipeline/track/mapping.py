"""What the records of a journal are called in MLflow: names, params and tags within MLflow's limits.

Pure functions of a record; no MLflow here.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.track.journal import Record

UID = "run.uid"
MEMBERS = "sweep.members"
"""Tag with the number of a sweep's members, of the run that they are children of; by it readers know that run."""
SWEEP, MEMBER, PARENT = "sweep", "sweep.member", "sweep.parent"
"""Tags of a member: the sweep's name, the member's number, and the uid of the run that it is a child of."""
REASON = "status.reason"
RUN_DIR = "run.dir"
FAILED = "tracking.failed"
"""Tag with what the store did not take, one a line: files, which are tried again, and what it refuses for good."""
HEARTBEAT = "heartbeat"
"""Tag with the unix seconds at which the shipper last was alive."""
# Limits. Source: mlflow/utils/validation.py of MLflow 3.17.
_NAME_LENGTH = 250
_PARAM_LENGTH = 6000
_TAG_LENGTH = 8000
_NOT_ALLOWED = re.compile(r"[^\w.\- :/]")
# MLflow's own tag for the code's version, which its listing of runs shows in a column.
# Source: https://mlflow.org/docs/latest/ml/tracking/tracking-api/#system-tags
_COMMIT = "mlflow.source.git.commit"


def name(text: str) -> str:
    """Return a name of a metric, param or tag as MLflow takes it: it refuses others and what is sent with them."""
    allowed = _NOT_ALLOWED.sub("_", text)[:_NAME_LENGTH]
    return "/".join(part for part in allowed.split("/") if part.strip(".")) or "_"


def params(record: Record) -> dict[str, str]:
    """Return the params of a "run" record: the flat configuration, and the plan under `plan.`."""
    plan = {f"plan.{key}": value for key, value in record["plan"].items()}
    return {name(key): text(value)[:_PARAM_LENGTH] for key, value in (record["config"] | plan).items()}


def changes(there: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Return tags for the params that MLflow holds with another value: it refuses to change a param."""
    return {name(f"changed.{key}"): tag(value) for key, value in now.items() if there.get(key, value) != value}


def tags(record: Record, run_dir: Path) -> dict[str, str]:
    """Return the tags of a "run" record."""
    found = record["tags"] | {UID: record["uid"], RUN_DIR: str(run_dir.absolute())}
    if "git.commit" in found:
        found[_COMMIT] = found["git.commit"]
    if record.get("resumed_from_step") is not None:
        found["resumed_from_step"] = record["resumed_from_step"]
    return {name(key): tag(value) for key, value in found.items()}


def tag(value: Any) -> str:
    """Return a tag's value as long as MLflow takes it."""
    return text(value)[:_TAG_LENGTH]


def counts(dataset: Mapping[str, Any]) -> dict[str, int]:
    """Return what a data set's profile in MLflow says of it."""
    return {"num_rows": dataset["images"], "num_classes": dataset["classes"]}


def text(value: Any) -> str:
    r"""Return text as it is and other values as the configuration files write them: `true`, `null`, `[1, 2]`.

    Without the characters that no database takes: halves of a pair (`\ud800`) and zeros.
    """
    found = value if isinstance(value, str) else json.dumps(value)
    return found.encode("utf-8", "replace").decode().replace("\0", "?")
