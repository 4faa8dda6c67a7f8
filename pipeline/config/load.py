"""Read configurations: files that build on each other (`base:`), overrides, and errors that name file, line and key."""

import copy
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config.meaning import without_effect
from pipeline.config.schema import Config
from pipeline.errors import ConfigError
from pipeline.files import read_bytes

Tree = dict[str, Any]
_MAPPINGS = ("expect.top1",)
"""Keys whose value is a mapping: one that a file gives replaces its base's."""
_MOST_VALUES = 100_000


@dataclass
class Source:
    """A merged tree of raw values, the place that each key came from, and the problems met so far."""

    tree: Tree = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def where(self, key: str) -> str:
        """Return the place of a key, or of the nearest group above it, or of a key below it, the command line's first."""
        while key:
            below = [place for k, place in self.origin.items() if k.startswith(key + ".")]
            if "command line" in below or (below and key not in self.origin):
                return "command line" if "command line" in below else below[0]
            if key in self.origin:
                break
            key = key.rpartition(".")[0]
        return self.origin.get(key, "defaults")


def load(path: Path | str | None, overrides: Sequence[str] = (), *, strict: bool = True) -> Config:
    """Read a configuration file and apply overrides such as `optim.lr=0.5`; `strict` refuses keys without effect too.

    Raises:
        ConfigError: listing every problem with its file and line, the key, and the nearest known key.
    """
    source = Source()
    if path is not None:
        _read(Path(path), source, ())
    for text in overrides:
        _override(text, source)
    return _validate(source, strict)


def loads(text: str, where: str, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration from YAML text, which errors call `where`, and apply overrides.

    Keys without effect are not refused, as such text belongs to a run that there has been.

    Raises:
        ConfigError: as `load` does.
    """
    source = Source()
    tree, lines = _parse(text, where, source)
    _merge(source, tree, "", {k: f"{where}:{n}" for k, n in lines.items()}, where)
    for override in overrides:
        _override(override, source)
    return _validate(source, strict=False)


def _validate(source: Source, strict: bool) -> Config:
    wrong: list[str] = []
    cfg: Config | None
    try:
        cfg = Config.model_validate(source.tree)
    except ValidationError as error:
        source.problems += _explain_all(error, source)
        cfg, wrong = _what_is_right(source.tree, error)
    if cfg and strict:
        source.problems += [f"{source.where(key)}: {key}: {what}" for key, what in without_effect(cfg, wrong).items()]
    if source.problems or not cfg:
        raise ConfigError("\n".join(dict.fromkeys(source.problems)))
    return cfg


def _what_is_right(tree: Tree, error: ValidationError) -> tuple[Config | None, list[str]]:
    """Return the configuration without the keys that are wrong, if there is one, and those keys."""
    rest = copy.deepcopy(tree)
    wrong = [_real_keys(tuple(map(str, one["loc"]))) for one in error.errors()]
    for *groups, key in filter(None, wrong):
        target: Any = rest
        for group in groups:
            target = target.get(group, {})
        target.pop(key, None)
    try:
        return Config.model_validate(rest), [".".join(keys) for keys in wrong]
    except ValidationError:  # of keys that do not fit together
        return None, []


def _read(path: Path, source: Source, above: tuple[Path, ...]) -> None:
    """Merge a file over what its `base:` says, and that over `source`."""
    if path.resolve() in above:
        chain = " -> ".join(p.name for p in (*above, path))
        raise ConfigError(f"{path}: base: the files name each other in a circle ({chain}); remove one base:")
    tree, lines = _parse(_text(path), str(path), source)
    base = tree.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            raise ConfigError(f"{path}:{lines.get('base', 1)}: base: must be the path of one file, not {base!r}")
        _read(path.parent / base, source, (*above, path.resolve()))
    _merge(source, tree, "", {k: f"{path}:{n}" for k, n in lines.items()}, str(path))


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8")
    except OSError as error:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else "; check the path"
        raise ConfigError(f"{path}: can't read the config: {error.strerror}{hint}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid YAML: it is not text ({error.reason}); check the path") from error


def _parse(text: str, where: str, source: Source) -> tuple[Tree, dict[str, int]]:
    """Return the values in YAML text and the line of each dotted key."""
    lines: dict[str, int] = {}
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if _values(node, {}) > _MOST_VALUES:
            raise ConfigError(f"{where}: its aliases stand for over {_MOST_VALUES:,} values; write out what is meant")
        tree = yaml.safe_load(text)
        if isinstance(tree, dict):
            _lines(node, "", lines, source.problems, where)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none; an anchor within itself
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{where}{line}: not valid YAML: {problem}") from error
    if tree is None:
        return {}, {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: a config is a mapping of keys, not {type(tree).__name__}")
    return tree, lines


def _values(node: Any, known: dict[int, int]) -> int:
    """Return how many values a node stands for; a few aliases of aliases make billions of them."""
    if id(node) not in known:
        known[id(node)] = 1  # of one within itself
        inside = getattr(node, "value", ())
        pairs = isinstance(node, yaml.MappingNode)
        nodes = [one for pair in inside for one in pair] if pairs else inside if isinstance(node, yaml.SequenceNode) else []
        known[id(node)] = 1 + sum(_values(one, known) for one in nodes)
    return known[id(node)]


def _lines(node: Any, prefix: str, lines: dict[str, int], problems: list[str], where: str) -> None:
    for key_node, value_node in node.value:
        key, line = f"{prefix}{key_node.value}", key_node.start_mark.line + 1
        if key in lines:
            problems.append(f"{where}:{line}: {key}: given twice (first on line {lines[key]}); remove one")
        lines[key] = line
        if isinstance(value_node, yaml.MappingNode):
            _lines(value_node, key + ".", lines, problems, where)


def _merge(source: Source, new: Tree, prefix: str, places: dict[str, str], default: str) -> None:
    """Lay `new` over the tree, group by group; a value that is no group replaces what was there."""
    target = source.tree
    for part in prefix.split(".")[:-1]:
        target = target[part]
    for key, value in new.items():
        dotted = f"{prefix}{key}"
        source.origin[dotted] = places.get(dotted, default)
        if isinstance(value, dict) and dotted not in _MAPPINGS:
            if not isinstance(target.get(key), dict):
                target[key] = {}
            _merge(source, value, dotted + ".", places, default)
        else:
            target[key] = value


def _override(text: str, source: Source) -> None:
    """Apply `key=value`. Scalars go to the schema as text: YAML would turn `on`, `1e-3` and `123` into something else."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        source.problems.append(f"command line: {text!r} is not an override; write key=value, such as optim.lr=0.5")
        return
    parsed: Any = value
    if value[:1] in ("[", "{") or value == "null":
        try:
            parsed = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            source.problems.append(f"command line: {key}: {value!r} is not a valid list or mapping")
            return
    if isinstance(parsed, dict):  # a group in braces is laid over what is there, as in a file
        for inner_key, inner in parsed.items():
            _set(f"{key}.{inner_key}", inner, source)
    else:
        _set(key, parsed, source)


def _set(key: str, value: Any, source: Source) -> None:
    target = source.tree
    *groups, last = key.split(".")
    for group in groups:
        inner = target.setdefault(group, {})
        if not isinstance(inner, dict):
            inner = target[group] = {}
        target = inner
    target[last] = value
    parts = key.split(".")
    source.origin |= {".".join(parts[:n]): "command line" for n in range(min(2, len(parts)), len(parts) + 1)}


def _explain_all(error: ValidationError, source: Source) -> list[str]:
    """Turn pydantic's errors into `place: key: what is wrong; remedy`, one for each key."""
    found: dict[str, list[str]] = {}
    known = set(all_keys())
    for one in error.errors():
        loc = tuple(str(part) for part in one["loc"])
        key = ".".join(_real_keys(loc))
        if not loc:  # keys of different groups that do not fit together: the message begins with one of them
            key, _, said = one["msg"].removeprefix("Value error, ").partition(": ")
            found.setdefault(f"{source.where(key)}: {key}: ", []).append(said)
            continue
        place, said = source.where(key), _explain(one, loc)
        inner, colon, rest = said.partition(": ")
        if colon and f"{key}.{inner}" in known:  # keys of one group that do not fit together
            key, said = f"{key}.{inner}", rest
        found.setdefault(f"{place}: {key}: ", []).append(said)
    # the members of a union each have their say: `input should be 'auto'` or `a valid integer`
    return [head + _either(list(dict.fromkeys(said))) for head, said in found.items()]


def _either(said: list[str]) -> str:
    """Return what one or more members of a union say of the same value: `must be 'auto' or a valid integer, not 'x'`."""
    first, *others = said
    given = first.partition(", not ")[2]
    if not others or not all(other.endswith(f", not {given}") for other in others):
        return " or ".join(said)
    plain = [
        text.removesuffix(f", not {given}") for text in (first, *(other.removeprefix("input should be ") for other in others))
    ]
    return f"{' or '.join(plain)}, not {given}"


def _explain(error: Any, loc: tuple[str, ...]) -> str:
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"unknown key{_suggest(loc)}"
    if kind == "literal_error":
        return f"must be {error['ctx']['expected']}, not {error['input']!r}{_nearest_choice(error)}"
    message = error["msg"].removeprefix("Value error, ").partition(", unable to parse")[0]
    message = message[:1].lower() + message[1:]
    plain = kind in ("value_error", "missing") or isinstance(error["input"], dict)
    return message if plain else f"{message}, not {error['input']!r}"


def _nearest_choice(error: Any) -> str:
    choices = error["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
    near = difflib.get_close_matches(str(error["input"]).lower(), choices, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _real_keys(loc: tuple[str, ...]) -> list[str]:
    """Drop what pydantic adds to a location for the members of a union."""
    keys: list[str] = []
    model: type[BaseModel] | None = Config
    for part in loc:
        known = _names(model) if model else {}
        if not known and keys:
            break
        keys.append(part)
        model = known.get(part)
    return keys


def _names(model: type[BaseModel] | None) -> dict[str, type[BaseModel] | None]:
    """Return the keys of a group, with the group that each stands for."""
    if model is None:
        return {}
    found: dict[str, type[BaseModel] | None] = {}
    for name, info in model.model_fields.items():
        kind = info.annotation
        found[info.alias or name] = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    return found


def all_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Return every dotted key of the schema, in order."""
    keys: list[str] = []
    for name, group in _names(model).items():
        keys += all_keys(group, f"{prefix}{name}.") if group else [f"{prefix}{name}"]
    return keys


def _suggest(loc: tuple[str, ...]) -> str:
    """Return a hint: the nearest key in the same group, else the same last part in another, else nothing."""
    known, dotted = all_keys(), ".".join(loc)
    same_name = [k for k in known if k.rpartition(".")[2] == loc[-1]]
    groups = [k for k, group in _names(Config).items() if group] if len(loc) == 1 else []
    group = [k for k in known if k.rpartition(".")[0] == ".".join(loc[:-1])]
    near = (
        difflib.get_close_matches(dotted, group + groups, 1, 0.6)
        or same_name
        or difflib.get_close_matches(dotted, known + groups, 1, 0.6)
        or [k for k in known if difflib.get_close_matches(loc[-1], [k.rpartition(".")[2]], 1, 0.75)]
    )
    return f"; did you mean {near[0]}?" if near else "; `python -m pipeline config describe` lists them all"
