import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Config, all_keys, describe, digest, flat, keys, load, to_yaml
from pipeline.config.describe import as_tree
from pipeline.errors import ConfigError
from pipeline.units import Duration

CONFIGS = sorted(p for p in Path("configs").rglob("*.yaml") if "site" not in p.parts)  # sites are read by the launcher
CONFIGS = [path for path in CONFIGS if path.name != "degradation.yaml"]  # a set of runs: see tests/unit/experiment


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def problems(*args: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(*args)  # type: ignore[arg-type]
    return str(caught.value).splitlines()


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_every_shipped_config_loads(path: Path) -> None:
    load(path)


def test_base_is_laid_under_and_overrides_over(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "optim: {lr: 1.0, momentum: 0.5}\nseed: 3\n")
    (tmp_path / "sub").mkdir()
    b = write(tmp_path / "sub" / "b.yaml", "base: ../a.yaml\noptim: {lr: 2.0}\n")
    cfg = load(b, ["optim.weight_decay=1e-3", "seed=4"])
    assert (cfg.optim.lr, cfg.optim.momentum, cfg.optim.weight_decay, cfg.seed) == (2.0, 0.5, 1e-3, 4)


def test_a_circle_of_bases_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "base: b.yaml\n")
    write(tmp_path / "b.yaml", "base: a.yaml\n")
    (line,) = problems(tmp_path / "a.yaml")
    assert "circle" in line and "a.yaml -> b.yaml -> a.yaml" in line


def test_all_problems_at_once_with_file_line_key_and_suggestion(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.yaml",
        "optim:\n  lrr: 1\nbatch: {micro: -1}\ntrain:\n  epochs: 9 weeks\nwarmup: 3\neval:\n  resize: 10\n  crop: 20\n",
    )
    found = problems(path, ["optm.lr=3", "nonsense", "data.flip=2"])
    expected = [
        (f"{path}:2: optim.lrr: unknown key", "did you mean optim.lr?"),
        (f"{path}:3: batch.micro:", "greater than 0"),
        (f"{path}:5: train.epochs:", "90ep"),
        (f"{path}:6: warmup: unknown key", "did you mean schedule.warmup?"),
        (f"{path}:7: eval:", "crop (20) is larger than resize (10)"),
        ("command line: optm: unknown key", "did you mean optim?"),
        ("command line: 'nonsense' is not an override", "key=value"),
        ("command line: data.flip:", "less than or equal to 1"),
    ]
    for start, part in expected:
        assert any(line.startswith(start) and part in line for line in found), (start, found)
    assert len(found) == len(expected)


def test_a_union_is_one_problem() -> None:
    (line,) = problems(None, ["batch.global=x"])
    assert line.startswith("command line: batch.global:") and "'auto'" in line and "'x'" in line


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [1", "YAML"),
        ("- 1\n- 2", "mapping"),
        ("seed: 1\nseed: 2", "given twice"),
        ("base: [a]", "one file"),
        ("optim: 3", "optim"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, part: str) -> None:
    path = write(tmp_path / "c.yaml", text)
    (line,) = problems(path)
    assert str(path) in line and part in line


def test_a_missing_file_suggests_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "demo.yaml", "")
    (line,) = problems(tmp_path / "deno.yaml")
    assert "demo.yaml?" in line


def test_a_missing_base_names_itself(tmp_path: Path) -> None:
    (line,) = problems(write(tmp_path / "c.yaml", "base: no/such.yaml\n"))
    assert "no/such.yaml" in line and "No such file" in line


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("run.name=on", "run.name", "on"),
        ("run.name=123", "run.name", "123"),
        ("run.name=1e-3", "run.name", "1e-3"),
        ("run.name=a=b", "run.name", "a=b"),
        ("optim.lr=1e-3", "optim.lr", 1e-3),
        ("optim.lr_per=null", "optim.lr_per", None),
        ("optim.nesterov=true", "optim.nesterov", True),
        ("data.crop_scale=[0.5, 1]", "data.crop_scale", [0.5, 1.0]),
        ("train.epochs=3", "train.epochs", "3ep"),
        ("batch.global=512", "batch.global", 512),
        ("batch.global=auto", "batch.global", "auto"),
    ],
)
def test_overrides_keep_what_was_written(override: str, key: str, value: object) -> None:
    assert flat(as_tree(load(None, [override])))[key] == value


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_shown_config_loads_to_the_same(path: Path, tmp_path: Path) -> None:
    cfg = load(path)
    assert load(write(tmp_path / "shown.yaml", to_yaml(cfg))) == cfg


@given(st.integers(0, 2**32 - 1), st.floats(1e-8, 1e3), st.sampled_from(["1ep", "20st", "5%"]))
def test_any_values_survive_yaml(seed: int, lr: float, warmup: str) -> None:
    cfg = load(None, [f"seed={seed}", f"optim.lr={lr!r}", f"schedule.warmup={warmup}"])
    again = Config.model_validate(yaml.safe_load(to_yaml(cfg)))
    assert again == cfg and again.schedule.warmup == Duration.parse(warmup)


def test_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(None).optim.lr = 3  # type: ignore[misc]


def test_every_key_has_a_sentence() -> None:
    rows = keys()
    assert [r["key"] for r in rows] == all_keys()
    for row in rows:
        assert row["help"].endswith(".") and len(row["help"]) > 8, row
        assert row["key"] in describe()


def test_digest_ignores_what_does_not_change_learning() -> None:
    a = digest(load(None, ["run.name=a", "track.enabled=false"]))
    assert a == digest(load(None, ["run.name=b"]))
    assert a != digest(load(None, ["seed=1"]))


@pytest.mark.parametrize("text", ["data: {root: 2020-13-45}", "run: &r {name: *r}"])
def test_yaml_that_breaks_the_reader(tmp_path: Path, text: str) -> None:
    (line,) = problems(write(tmp_path / "c.yaml", text))
    assert "c.yaml" in line and "not valid YAML" in line


def test_a_group_in_braces_is_laid_over_the_files(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "optim: {momentum: 0.5, lr: 2}\n")
    cfg = load(path, ["optim={lr: 1}"])
    assert (cfg.optim.lr, cfg.optim.momentum) == (1.0, 0.5)


def test_an_override_that_goes_too_deep_is_blamed_on_the_command_line(tmp_path: Path) -> None:
    (line,) = problems(write(tmp_path / "c.yaml", "optim: {lr: 2}\n"), ["optim.lr.foo=1"])
    assert line.startswith("command line: optim.lr: ")


@pytest.mark.parametrize("override", ["eval.every=0ep", "train.checkpoint_every=0%"])
def test_a_length_of_nothing_is_refused(override: str) -> None:
    (line,) = problems(None, [override])
    assert "longer than nothing" in line


def test_credentials_in_addresses_are_not_shown() -> None:
    cfg = load(None, ["track.uri=https://bob:s3cr3t@host/path"])
    assert "s3cr3t" not in to_yaml(cfg) and "host/path" in to_yaml(cfg)
    assert cfg.track.uri == "https://bob:s3cr3t@host/path"


@pytest.mark.parametrize("name", ["team/resnet", "a:b", ".", "..a", " "])
def test_a_name_that_mlflows_registry_would_refuse_is_refused_before_training(tmp_path: Path, name: str) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_model_name

    with pytest.raises(MlflowException):
        _validate_model_name(name)
    path = write(tmp_path / "c.yaml", yaml.safe_dump({"track": {"register": name}}))
    (line,) = problems(path)
    assert "track.register: must be a name without / and :" in line
    assert load(write(path, "track: {register: my-net.v2}\n")).track.register_ == "my-net.v2"


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "tab\there", "\u202eback"])
def test_a_name_that_would_move_the_cursor_of_a_terminal_is_refused(tmp_path: Path, name: str) -> None:
    (line,) = problems(write(tmp_path / "c.yaml", yaml.safe_dump({"run": {"name": name}})))
    assert "run.name: must be printable, without line breaks" in line and line.isprintable()
    assert load(write(tmp_path / "c.yaml", "run: {name: größe 7}\n")).run.name == "größe 7"


def test_members_of_a_union_speak_of_a_value_together() -> None:
    for value in ("abc", "a, not b"):
        with pytest.raises(
            ConfigError, match=rf"^command line: batch.global: must be 'auto' or a valid integer, not '{value}'$"
        ):
            load(None, [f"batch.global={value}"])


def odd_files(tmp_path: Path) -> list[tuple[Path, str]]:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (2 << 20))
    return [
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path / "pipe.yaml", "not a regular file"),
        (tmp_path / "large.yaml", "larger than 1 MiB"),
        (tmp_path, "not a regular file"),
    ]


def test_a_device_a_pipe_or_a_large_file_is_refused_at_once_as_a_config_and_as_a_base(tmp_path: Path) -> None:
    for path, said in odd_files(tmp_path):
        base = write(tmp_path / "config.yaml", f"base: {path}\n")
        for file in (path, base):
            (line,) = problems(file)
            assert line.startswith(f"{path}: can't read the config: {said}")


@pytest.mark.parametrize("start", ["{p: 1, q: 2}", "[1, 2]"])
def test_aliases_that_stand_for_billions_of_values_are_refused(start: str, tmp_path: Path) -> None:
    lines = [f"a0: &a0 {start}"]
    for n in range(1, 40):
        both = f"*a{n - 1}, r: *a{n - 1}" if "{" in start else f"*a{n - 1}, *a{n - 1}"
        lines.append(f"a{n}: &a{n} " + (f"{{q: {both}}}" if "{" in start else f"[{both}]"))
    (line,) = problems(write(tmp_path / "bomb.yaml", "\n".join(lines)))
    assert "bomb.yaml: its aliases stand for over 100,000 values" in line
