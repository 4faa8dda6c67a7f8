"""What the keys of a configuration decide, and which of them have no effect; the schema's fields are marked with both."""

from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

from pydantic.fields import FieldInfo

from pipeline.config.fields import Kind, OnlyIf, Section
from pipeline.config.schema import Config
from pipeline.units import Duration


def fields(model: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, type[Section], FieldInfo]]:
    """Yield each dotted key of the schema, in order, with the group that it stands in and its field."""
    for name, info in model.model_fields.items():
        key, inner = f"{prefix}{info.alias or name}", info.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from fields(inner, f"{key}.")
        else:
            yield key, model, info


def kind(key: str) -> Kind:
    """Return what a dotted key decides; one that no schema has, as of an older version, is taken for one that is learned."""
    known = _kinds()
    while key and key not in known:
        key = key.rpartition(".")[0]  # a key within a mapping, or one that its group no longer has
    return known.get(key, Kind.LEARNED)


@cache
def _kinds() -> dict[str, Kind]:
    groups = {key.rpartition(".")[0]: model.kind for key, model, _ in fields()}
    return groups | {key: next((m for m in info.metadata if isinstance(m, Kind)), model.kind) for key, model, info in fields()}


def conditions(info: FieldInfo) -> list[OnlyIf]:
    """Return what has to hold for a key to have an effect."""
    return [mark for mark in info.metadata if isinstance(mark, OnlyIf)]


def said(condition: OnlyIf) -> str:
    """Return a condition for people: `optim.name=adamw or lamb`."""
    keys = " or ".join(condition.keys)
    return f"{keys}={' or '.join(condition.values)}" if condition.values else keys


def without_effect(cfg: Config, doubtful: Collection[str] = ()) -> dict[str, str]:
    """Return the keys that have no effect with what is chosen, each with what is wrong and the remedy.

    A key at its default is left alone, so that a file can take back what its base says, and so is a length of nothing.
    What depends on one of the `doubtful` keys or groups is not judged.
    """
    found = {}
    for key, _, info in fields():
        missing = [one for one in conditions(info) if not _holds(cfg, one)]
        if any(f"{k}.".startswith(f"{unsure}.") for one in missing for k in one.keys for unsure in doubtful):
            continue
        given = value(cfg, key)
        if missing and given != info.default and (_is_set(given) or not isinstance(given, Duration)):
            now = ", ".join(f"{k}={_shown(value(cfg, k))}" for one in missing for k in one.keys)
            default = f"{key}={_shown(info.default)}"
            needed = " and ".join(map(said, missing))
            found[key] = f"has no effect with {now}; set {needed}, or remove it ({default} takes back what a base says)"
    return found


def value(cfg: Config, key: str) -> Any:
    """Return the value of a dotted key."""
    found: Any = cfg
    for part in key.split("."):
        found = getattr(found, f"{part}_" if f"{part}_" in type(found).model_fields else part)
    return found


def _holds(cfg: Config, condition: OnlyIf) -> bool:
    values = [value(cfg, key) for key in condition.keys]
    return any(v in condition.values for v in values) if condition.values else any(map(_is_set, values))


def _is_set(found: Any) -> bool:
    return bool(found.value if isinstance(found, Duration) else found) and found != "none"


def _shown(found: Any) -> str:
    if found is None or isinstance(found, bool):
        return {None: "null", True: "true", False: "false"}[found]
    return f"[{', '.join(map(_shown, found))}]" if isinstance(found, tuple) else str(found)
