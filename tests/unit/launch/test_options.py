from pathlib import Path

import pytest

from launch.options import minutes, options, site_file
from pipeline.errors import ConfigError, UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("90:00", 90), ("90:01", 91), ("1:30:00", 90), ("2-12", 3600), ("2-12:30", 3630), ("2-12:30:30", 3631)],
)
def test_slurms_time_limits(text: str, expected: int) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "1h", "0", "1:2:3:4", "-5", "1-"])
def test_what_is_no_time_limit(text: str) -> None:
    with pytest.raises(ValueError, match="time"):
        minutes(text)


def test_the_command_line_goes_over_the_site(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("partition: main\ntime: 1-00:00:00\nsetup: [module load cuda]\nset: {comment: a}\nmem: 64G\n")
    found = options(site, {"partition": "high", "nodes": None, "setup": ("ulimit -n 4096",), "set": {"nice": "5"}})
    assert (found.partition, found.time, found.nodes, found.mem) == ("high", 1440, 1, "64G")
    assert found.setup == ("module load cuda", "ulimit -n 4096") and found.set == {"comment": "a", "nice": "5"}
    assert type(found).model_validate(found.model_dump(mode="json")) == found


def test_every_problem_is_named_with_its_place(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("partitoin: main\ntime: soon\n")
    with pytest.raises(ConfigError) as caught:
        options(site, {"nodes": 0})
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert any(line.startswith(f"{site}: partitoin: unknown") for line in lines)
    assert any(line.startswith(f"{site}: time: ") for line in lines)
    assert any(line.startswith("--nodes: ") for line in lines)


def test_where_the_site_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert site_file(None) is None
    path = tmp_path / "image-pipeline" / "site.yaml"
    path.parent.mkdir()
    path.touch()
    assert site_file(None) == path and options(path, {}).nodes == 1
    with pytest.raises(UsageError, match="no such site file"):
        site_file(tmp_path / "other.yaml")
    path.write_text("- a\n")
    with pytest.raises(ConfigError, match="mapping"):
        options(path, {})
