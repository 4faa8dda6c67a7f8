"""What a job asks SLURM for: options from the command line over those of the site file.

Not here: submitting (`launch.slurm`). No cluster's names or limits stand in the code; they belong into the site file.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pipeline.errors import ConfigError, UsageError

_TIME = re.compile(r"^(?:(?P<days>\d+)-)?(?P<parts>\d+(?::\d+){0,2})$")
Positive = Annotated[int, Field(gt=0)]


def minutes(text: str | int) -> int:
    """Return a time limit in minutes from SLURM's forms: `90`, `90:00`, `1:30:00`, `2-12`, `2-12:00`, `2-12:00:00`.

    Source: sbatch(1), `--time`. Seconds are rounded up.

    Raises:
        ValueError: for anything else, and for no time at all.
    """
    found = _TIME.match(str(text).strip())
    if found is None:
        raise ValueError(f"{text!r} is not a time limit; write 90 (minutes), 1:30:00 (hours) or 2-12:00:00 (days-hours)")
    parts = [int(part) for part in found["parts"].split(":")]
    if found["days"]:
        hours, mins, secs = (*parts, 0, 0)[:3]
    else:
        hours, mins, secs = {1: (0, *parts, 0), 2: (0, *parts), 3: tuple(parts)}[len(parts)]
    total = int(found["days"] or 0) * 1440 + hours * 60 + mins + (secs > 0)
    if total == 0:
        raise ValueError(f"{text!r} is no time at all")
    return total


class Options(BaseModel):
    """What to ask for; `None` leaves it to the cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: Positive = 1
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    nproc_per_node: Positive | None = None
    task_per: Literal["node", "gpu"] = "node"
    cpus_per_task: Positive | None = None
    time: Annotated[int | None, BeforeValidator(lambda v: None if v is None else minutes(v))] = None
    signal_delay_s: Annotated[int, Field(ge=10)] = 120
    mem: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    reservation: str | None = None
    dependency: str | None = None
    container_image: str | None = None
    container_mounts: str | None = None
    python: str | None = None
    setup: tuple[str, ...] = ()
    set: Mapping[str, str] = {}

    @property
    def processes(self) -> int:
        """Training processes on each node."""
        return self.nproc_per_node or self.gpus_per_node or 1


def site_file(given: Path | None) -> Path | None:
    """Return the site file: the given one, or `image-pipeline/site.yaml` in the user's configuration folder if it is there.

    Raises:
        UsageError: if the given one is missing.
    """
    if given is not None:
        path = given.expanduser()
        if not path.is_file():
            raise UsageError(f"{path}: no such site file; see docs/slurm.md for what stands in one")
        return path
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    path = home / "image-pipeline" / "site.yaml"
    return path if path.is_file() else None


def options(site: Path | None, asked: Mapping[str, Any]) -> Options:
    """Lay what was asked for over the site's defaults; None and empty values were not asked for.

    Raises:
        ConfigError: listing every problem, with its key and where it stands.
    """
    defaults = _read(site)
    wanted = {key: value for key, value in asked.items() if value not in (None, (), {})}
    # Lines of set-up and SLURM's own keys add to the site's; everything else replaces it.
    if defaults.get("setup") and wanted.get("setup"):
        wanted["setup"] = (*defaults["setup"], *wanted["setup"])
    if defaults.get("set") and wanted.get("set"):
        wanted["set"] = {**defaults["set"], **wanted["set"]}
    try:
        return Options.model_validate({**defaults, **wanted})
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(one, wanted, site) for one in error.errors())) from error


def _explain(one: Any, wanted: Mapping[str, Any], site: Path | None) -> str:
    key = str(one["loc"][0])
    place = f"--{key.replace('_', '-')}" if key in wanted else f"{site}: {key}"
    if one["type"] == "extra_forbidden":
        return f"{place}: unknown; known are {', '.join(Options.model_fields)}"
    message = one["msg"].removeprefix("Value error, ")
    return f"{place}: {message[:1].lower() + message[1:]}"


def _read(site: Path | None) -> dict[str, Any]:
    if site is None:
        return {}
    try:
        found = yaml.safe_load(site.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{site}: not a readable YAML file: {str(error).splitlines()[0]}") from error
    if not isinstance(found or {}, dict):
        raise ConfigError(f"{site}: a site file is a mapping of options, such as partition: main")
    return dict(found or {})
