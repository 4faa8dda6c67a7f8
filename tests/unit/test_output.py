import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.__main__ import cli
from pipeline.output import printable

COMMANDS = [["runs", "--root", "docs"], ["config", "describe"], ["config", "show", "configs/demo.yaml"]]


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_json_goes_to_the_terminal_a_file_or_what_is_no_regular_file(command: list[str], tmp_path: Path) -> None:
    printed = CliRunner().invoke(cli, [*command, "--json"])
    value = json.loads(printed.output)
    assert CliRunner().invoke(cli, [*command, "--json", str(tmp_path / "out.json")]).stdout == ""
    assert json.loads((tmp_path / "out.json").read_text()) == value
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "target")
    CliRunner().invoke(cli, [*command, "--json", str(link)])
    assert link.is_symlink() and json.loads((tmp_path / "target").read_text()) == value
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    CliRunner().invoke(cli, [*command, "--json", str(tmp_path / "pipe")])
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


def test_only_what_a_terminal_shows_is_left_of_a_text() -> None:
    assert printable("größe ✓") == "größe ✓"
    assert printable("a\x1b[31m\n\u202e\udcff") == r"a\x1b[31m\n\u202e\udcff"
    assert printable("a\n\tb", keep="\n") == "a\n\\tb"
