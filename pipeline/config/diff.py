"""What separates two configurations."""

from typing import Any

from pipeline.config.describe import as_tree, flat
from pipeline.config.schema import Config

_NAMES = ("run.name", "run.dir", "run.root")


def diff(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Return the keys that differ, in the schema's order, with both values; what a run is called does not count."""
    first, second = flat(as_tree(a)), flat(as_tree(b))
    every = dict.fromkeys([*first, *second])
    return {k: (first.get(k), second.get(k)) for k in every if k not in _NAMES and first.get(k) != second.get(k)}


def render(found: dict[str, tuple[Any, Any]], names: tuple[str, str]) -> str:
    """Return the differences as a table for a terminal."""
    if not found:
        return f"{names[0]} and {names[1]} are the same"
    rows = [("", *names), *((key, _text(a), _text(b)) for key, (a, b) in found.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
