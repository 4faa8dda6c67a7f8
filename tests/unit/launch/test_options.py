from pathlib import Path

import pytest

from launch.options import changed, minutes, options, site_file
from pipeline.errors import ConfigError, UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("90:00", 90), ("90:01", 91), ("1:30:00", 90), ("2-12", 3600), ("2-12:30", 3630), ("2-12:30:30", 3631)],
)
def test_slurms_time_limits(text: str, expected: int) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "1h", "0", "1:2:3:4", "-5", "1-", "٣"])
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


@pytest.mark.parametrize(
    ("site", "asked", "place"),
    [
        ("", {"time": "2"}, "--time: 2 min is no longer than --signal-delay-s, 120 s"),
        ("", {"time": "90", "signal_delay_s": 5400}, "--time: 90 min is no longer than --signal-delay-s, 5400 s"),
        ("time: 2\n", {}, "{site}: time: 2 min is no longer than --signal-delay-s, 120 s"),
        ("time: 10\n", {"signal_delay_s": 600}, "{site}: time: 10 min is no longer than --signal-delay-s, 600 s"),
        ("signal_delay_s: 600\n", {"time": "10"}, "--time: 10 min is no longer than --signal-delay-s, 600 s"),
    ],
)
def test_a_job_has_time_to_train(tmp_path: Path, site: str, asked: dict[str, object], place: str) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(site)
    with pytest.raises(ConfigError) as caught:
        options(path, asked)
    assert str(caught.value).startswith(place.format(site=path)) and len(str(caught.value).splitlines()) == 1
    assert options(path, asked | {"time": "1-00:00:00"}).time == 1440


def test_the_options_of_an_earlier_submission_are_checked_too() -> None:
    before = options(None, {"time": "90", "set": {"nice": "5"}}).model_dump(mode="json")
    assert changed(before, {"time": "1:00:00"}).time == 60
    for text, said in (("2", "--time: 2 min is no longer than"), ("foo", "--time: 'foo' is not a time limit")):
        with pytest.raises(ConfigError, match=f"^{said}"):
            changed(before, {"time": text})


@pytest.mark.parametrize(("text", "expected"), [("1:30:00", 90), ("90", 90), ("2-12", 3600), ("90:00", 90), ("'45'", 45)])
def test_times_in_a_site_file_are_what_they_look_like(tmp_path: Path, text: str, expected: int) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(f"time: {text}\nnodes: 2\naccount: 0123\nmem: ~\nqos:\nset: {{nice: 5, exclusive: true}}\n")
    found = options(site, {})
    assert (found.time, found.nodes, found.account, found.mem, found.qos) == (expected, 2, "0123", None, None)
    assert found.set == {"nice": "5", "exclusive": "true"}


def test_one_line_of_set_up_may_stand_alone(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("setup: ulimit -n 4096\n")
    assert options(site, {"setup": ("module load cuda",)}).setup == ("ulimit -n 4096", "module load cuda")
    assert options(site, {}).setup == ("ulimit -n 4096",)


def test_a_site_file_that_is_a_device_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="^/dev/zero: not a readable YAML file: not a regular file$"):
        options(Path("/dev/zero"), {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"setup: {a: b}\n", "setup: input should be"),
        (b"set: foo\n", "set: input should be"),
        (b"\xff\xfe\x00", "not a readable"),
    ],
)
def test_a_site_file_is_checked_before_it_is_merged(tmp_path: Path, text: bytes, said: str) -> None:
    site = tmp_path / "site.yaml"
    site.write_bytes(text)
    with pytest.raises(ConfigError, match=f"^{site}: {said}"):
        options(site, {"setup": ("ulimit -n 4096",), "set": {"nice": "5"}})
