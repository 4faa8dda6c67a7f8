"""MLflow's model registry: a version for each run, and the alias of the best.

Not here: the model's files (`tracker`).
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

CHAMPION = "champion"


def register(client: Any, run_id: str, name: str, metric: Mapping[str, float]) -> None:
    """Make the model of a run a version of the registered model `name`, once, with its metric as a tag.

    The alias `champion` moves to it if there is none, or if its metric is higher than the champion's.

    Raises:
        Exception: what MLflow raises.
    """
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):  # it is there already; what else may be wrong fails below
        client.create_registered_model(name)
    (key, value), *_ = metric.items()
    version = _version(client, run_id, name) or client.create_model_version(
        name, f"runs:/{run_id}/model", run_id=run_id, tags={key: repr(float(value))}
    )
    if float(value) > _champions_value(client, name, key):
        client.set_registered_model_alias(name, CHAMPION, version.version)


def _version(client: Any, run_id: str, name: str) -> Any:
    """Return the version that a run has already, None if it has none."""
    return next((v for v in client.search_model_versions(f"name='{name}'") if v.run_id == run_id), None)


def _champions_value(client: Any, name: str, key: str) -> float:
    from mlflow.exceptions import MlflowException

    try:
        champion = client.get_model_version_by_alias(name, CHAMPION)
        return float(champion.tags[key])
    except (MlflowException, KeyError, ValueError):
        return -math.inf
