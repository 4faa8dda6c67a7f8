"""What a job asks SLURM for: options from the command line over those of the site file.

No cluster's names or limits stand in the code; they belong into the site file.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import ConfigError, UsageError
from pipeline.files import read_bytes

_TIME = re.compile(r"(?:(?P<days>[0-9]+)-)?(?P<parts>[0-9]+(?::[0-9]+){0,2})")
Positive = Annotated[int, Field(gt=0)]


def minutes(text: str | int) -> int:
    """Return a time limit in minutes from SLURM's forms: `90`, `90:00`, `1:30:00`, `2-12`, `2-12:00`, `2-12:00:00`.

    Source: sbatch(1), `--time`. Seconds are rounded up.

    Raises:
        ValueError: for anything else, and for no time at all.
    """
    found = _TIME.fullmatch(str(text).strip())
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


def lines(value: Any) -> Any:
    """Return the lines of one text as a tuple; anything else as it is."""
    return tuple(value.splitlines()) if isinstance(value, str) else value


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
    setup: Annotated[tuple[str, ...], BeforeValidator(lines)] = ()
    set: Mapping[str, str] = {}

    @model_validator(mode="after")
    def _time_to_train(self) -> Self:
        # SLURM would send the signal at the start of each job, and all requeues would be spent without a step.
        if self.time is not None and self.time * 60 <= self.signal_delay_s:
            raise ValueError(
                f"{self.time} min is no longer than --signal-delay-s, {self.signal_delay_s} s: each start would be told at "
                "once to save and requeue; raise --time, or lower --signal-delay-s"
            )
        return self

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

    def place(key: str) -> str:
        return _option(key) if key in wanted or key not in defaults else f"{site}: {key}"

    # Each by itself first: what can't be used can't be merged either, and an error names the place that it stands in.
    problems = [*_problems(defaults, lambda key: f"{site}: {key}"), *_problems(wanted, _option)]
    if problems:
        raise ConfigError("\n".join(problems))
    merged = {**defaults, **wanted}
    # Lines of set-up and SLURM's own keys add to the site's; everything else replaces it.
    merged["setup"] = (*lines(defaults.get("setup", ())), *lines(wanted.get("setup", ())))
    merged["set"] = {**defaults.get("set", {}), **wanted.get("set", {})}
    return _validated(merged, place)


def changed(before: Mapping[str, Any], given: Mapping[str, Any]) -> Options:
    """Lay what was asked for over the options of an earlier submission.

    Raises:
        ConfigError: listing every problem, with its key.
    """
    return _validated({**before, **given}, _option)


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _validated(values: Mapping[str, Any], place: Callable[[str], str]) -> Options:
    try:
        return Options.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(one, place) for one in error.errors())) from error


def _problems(values: Mapping[str, Any], place: Callable[[str], str]) -> list[str]:
    """Return what is wrong with each value alone; how they fit together shows when all are known."""
    try:
        Options.model_validate(values)
    except ValidationError as error:
        return [_explain(one, place) for one in error.errors() if one["loc"]]
    return []


def _explain(one: Any, place: Callable[[str], str]) -> str:
    where = place(str(one["loc"][0]) if one["loc"] else "time")
    if one["type"] == "extra_forbidden":
        return f"{where}: unknown; known are {', '.join(Options.model_fields)}"
    message = one["msg"].removeprefix("Value error, ")
    return f"{where}: {message[:1].lower() + message[1:]}"


class _Texts(yaml.SafeLoader):
    """Reads every value but null as the text that stands there: YAML 1.1 takes `1:30:00` for 5400."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag in ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _read(site: Path | None) -> dict[str, Any]:
    """Return the values of a site file; a key without one leaves it to the cluster, like a key that isn't there.

    Raises:
        ConfigError: if it is no mapping that can be read.
    """
    if site is None:
        return {}
    try:
        found = yaml.load(read_bytes(site).decode("utf-8"), _Texts)
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        what = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ConfigError(f"{site}: not a readable YAML file: {what}") from error
    if not isinstance(found or {}, dict):
        raise ConfigError(f"{site}: a site file is a mapping of options, such as partition: main")
    return {str(key): value for key, value in (found or {}).items() if value is not None}
