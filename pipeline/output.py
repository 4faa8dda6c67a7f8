"""What commands print: text for people, or JSON to where it was asked for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline.files import write_text


def printable(text: str, keep: str = "") -> str:
    """Return text in which nothing but the characters in `keep` can move a terminal's cursor: the rest is escaped.

    Names come from journals and stores that others may have written to.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--json [FILE]`: machine-readable output, on standard output or in a file."""
    return click.option(
        "--json",
        "json_to",
        is_flag=False,
        flag_value="-",
        metavar="[FILE]",
        help="Print JSON instead, or write it to FILE (after the other arguments, or as --json=FILE).",
    )(command)


def emit(value: Any, json_to: str | None, text: Callable[[], str]) -> None:
    """Print text for people, or JSON to where it was asked for.

    Raises:
        UsageError: if the file can't be written.
    """
    if json_to is None:
        click.echo(printable(text(), keep="\n\t"))
    else:
        put(json.dumps(value, indent=2) + "\n", json_to)


def put(text: str, to: str) -> None:
    """Print text where `to` is `-`, else write it to that file and say so.

    Raises:
        UsageError: if the file can't be written.
    """
    if to == "-":
        click.echo(text, nl=False)
    else:
        write_text(Path(to), text)
        wrote(to)


def wrote(to: str | Path) -> None:
    """Say what was written, where it is in nobody's way: on standard error."""
    click.echo(f"wrote {printable(str(to))}", err=True)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of the same keys as a CSV file; no rows make an empty file.

    Raises:
        UsageError: if it can't be written.
    """
    import csv
    import io

    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_text(path, text.getvalue())
