"""Show configurations: the schema for people, a tree as YAML, flat keys for tracking."""

import hashlib
import json
import types
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from pipeline.config.fields import Kind
from pipeline.config.meaning import conditions, fields, kind, said
from pipeline.config.schema import Config
from pipeline.redact import redact
from pipeline.units import Duration


def as_tree(cfg: Config) -> dict[str, Any]:
    """Return the configuration as plain nested values, as YAML or JSON would hold them, without credentials in addresses."""
    tree: dict[str, Any] = cfg.model_dump(mode="json")
    if tree["track"]["uri"]:
        tree["track"]["uri"] = redact(tree["track"]["uri"])
    return tree


def to_yaml(cfg: Config) -> str:
    """Return YAML that loads to the same configuration."""
    return yaml.safe_dump(as_tree(cfg), sort_keys=False, default_flow_style=None, width=100)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted keys."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def digest(cfg: Config) -> str:
    """Return a short hash of the keys that decide what is learned (`Kind.LEARNED`), and of no others."""
    learned = {k: v for k, v in flat(as_tree(cfg)).items() if kind(k) is Kind.LEARNED}
    return hashlib.sha256(json.dumps(learned, sort_keys=True).encode()).hexdigest()[:12]


def keys() -> list[dict[str, Any]]:
    """Return each key as `{key, type, default, help, kind, only_if}`: what it decides, and what it needs for an effect."""
    return [
        {
            "key": key,
            "type": _type(info.annotation, info),
            "default": _plain(info.default),
            "help": " ".join((info.description or "").split()),
            "kind": kind(key).value,
            "only_if": [said(one) for one in conditions(info)],
        }
        for key, _, info in fields()
    ]


def describe() -> str:
    """Return every key with its type, default and meaning, for a terminal."""
    lines: list[str] = []
    above = ""
    for row in keys():
        group = row["key"].rpartition(".")[0]
        if group != above:
            section = Config.model_fields[group].annotation
            lines += ["", f"{group}: {section.__doc__}"]
        above, needed = group, [f"only with {one}" for one in row["only_if"]]
        lines += [
            f"  {row['key']} = {json.dumps(row['default'])}  ({', '.join([row['type'], *needed])})",
            f"      {row['help']}",
        ]
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [round(v, 6) if isinstance(v, float) else v for v in value]
    return value if value is None or isinstance(value, bool | int | float | str | dict) else str(value)


def _collection(kind: Any, info: FieldInfo) -> str:
    inner = [_type(a, info) for a in get_args(kind) if a is not Ellipsis]
    if get_origin(kind) is dict:
        return f"mapping from {inner[0]} to {inner[1]}"
    many = "any number of" if Ellipsis in get_args(kind) else len(inner)
    return f"list of {many} {inner[0]}" if len(set(inner)) == 1 else f"list of {', '.join(inner)}"


def _type(kind: Any, info: FieldInfo) -> str:
    if kind is Duration:
        return "duration"
    if get_origin(kind) is Literal:
        return " | ".join(str(a) for a in get_args(kind))
    if get_origin(kind) in (Union, types.UnionType):
        return " | ".join(_type(a, info) for a in get_args(kind))
    if get_origin(kind) in (tuple, dict):
        return _collection(kind, info)
    if hasattr(kind, "__metadata__"):
        return _type(get_args(kind)[0], info)
    return "null" if kind is type(None) else {"Path": "path", "str": "text"}.get(kind.__name__, kind.__name__)
