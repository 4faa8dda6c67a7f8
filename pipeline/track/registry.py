"""MLflow's model registry: a version for each run, and the alias of the best."""

import logging
import math
from collections.abc import Mapping
from typing import Any

CHAMPION = "champion"
_log = logging.getLogger(__name__)
_NO_CHAMPION = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def register(client: Any, run_id: str, name: str, metric: Mapping[str, float]) -> None:
    """Make the model of a run a version of the registered model `name`, once, with its metric as a tag.

    The alias `champion` moves to it if there is none, or if its metric is higher than the champion's.

    Raises:
        Exception: what MLflow raises.
    """
    _make(client, name)
    (key, value), *_ = metric.items()
    version = _version(client, run_id, name) or client.create_model_version(
        name, f"runs:/{run_id}/model", run_id=run_id, tags={key: repr(float(value))}
    )
    if float(value) > _champions_value(client, name, key):
        client.set_registered_model_alias(name, CHAMPION, version.version)


def _make(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _version(client: Any, run_id: str, name: str) -> Any:
    """Return the version that a run has already, None if it has none."""
    return next((v for v in client.search_model_versions(f"name='{name}'") if v.run_id == run_id), None)


def _champions_value(client: Any, name: str, key: str) -> float:
    """Return the champion's metric: minus infinity where there is none, infinity where nobody can tell what it is."""
    from mlflow.exceptions import MlflowException

    try:
        champion = client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code in _NO_CHAMPION:
            return -math.inf
        raise  # a server that is slow or down has not said that there is none
    try:
        return float(champion.tags[key])
    except (KeyError, ValueError):
        _log.warning(
            "%s: version %s stays the champion, as it has no number in its tag %s to beat; set that tag, or move the alias",
            name,
            champion.version,
            key,
        )
        return math.inf
