import re
from pathlib import Path

import pytest

from pipeline.config import all_keys, describe, digest, keys, kind, load, loads
from pipeline.errors import ConfigError


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def problems(*args: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(*args)  # type: ignore[arg-type]
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["loss.threshold=0.2"], "loss.threshold: has no effect with loss.name=cross_entropy"),
        (["schedule.milestones=[30ep]"], "schedule.milestones: has no effect with schedule.name=cosine"),
        (["optim.trust=0.01"], "optim.trust: has no effect with optim.name=sgd; set optim.name=lars, or remove it"),
        (["optim.name=adamw", "optim.momentum=0.9"], "optim.momentum: has no effect with optim.name=adamw"),
        (["ema.every=5"], "ema.every: has no effect with ema.decay=null, ema.half_life=null"),
        (["mix.mixup=0.2", "mix.switch_prob=0.3"], "mix.switch_prob: has no effect with mix.cutmix=0.0"),
        (["data.block=8"], "data.block: has no effect with data.order=full"),
        (["schedule.warmup=0ep", "schedule.warmup_lr=0.1"], "schedule.warmup_lr: has no effect with schedule.warmup=0ep"),
        (["augment.policy=trivial", "augment.magnitude=0"], "augment.magnitude: has no effect with augment.policy=trivial"),
        (["track.model=false", "track.register=net"], "track.register: has no effect with track.model=false; set track.model"),
        (["data.executor=reference", "data.device=gpu"], "data.device: has no effect with data.executor=reference"),
    ],
)
def test_a_key_without_effect_is_refused(overrides: list[str], key: str) -> None:
    (line,) = problems(None, overrides)
    assert line.startswith(f"command line: {key}") and "takes back what a base says" in line


def test_the_default_takes_back_what_a_base_says(tmp_path: Path) -> None:
    base = write(tmp_path / "base.yaml", "seed: 1\noptim: {momentum: 0.9, nesterov: true}\n")
    path = write(tmp_path / "c.yaml", "base: base.yaml\noptim: {name: adamw, momentum: 0.875, nesterov: false}\n")
    assert load(path).optim.name == "adamw"
    write(path, "base: base.yaml\noptim: {name: adamw}\n")
    assert [line.partition(": has")[0] for line in problems(path)] == [
        f"{base}:2: optim.momentum",
        f"{base}:2: optim.nesterov",
    ]


def test_a_warm_up_of_no_length_may_stand_where_there_is_none() -> None:
    linear = ["schedule.name=linear", "schedule.points=[[0ep, 0], [2ep, 1], [100%, 0]]"]
    assert load(None, [*linear, "schedule.warmup=0ep"]).schedule.warmup.value == 0
    assert "schedule.warmup: has no effect with schedule.name=linear" in problems(None, [*linear, "schedule.warmup=2ep"])[0]


def test_keys_without_effect_are_told_with_the_other_problems() -> None:
    found = problems(None, ["optm.lr=3", "batch.micro=-1", "loss.threshold=0.2", "nonsense"])
    assert sorted(line.split(": ")[1].split(" ")[0] for line in found) == [
        "'nonsense'",
        "batch.micro",
        "loss.threshold",
        "optm",
    ]


def test_no_key_is_blamed_for_a_choice_that_is_wrong_itself() -> None:
    (line,) = problems(None, ["optim.name=adamww", "optim.betas=[0.9, 0.95]"])
    assert "did you mean adamw?" in line
    (line,) = problems(None, ["optim.name=adamw", "optim.betas=[0.9, 2]"])
    assert "less than 1" in line


def test_the_configuration_of_an_older_run_is_read_as_it_is(tmp_path: Path) -> None:
    text = "loss: {threshold: 0.2}\n"
    assert loads(text, "there").loss.threshold == 0.2
    assert load(write(tmp_path / "config.yaml", text), strict=False).loss.threshold == 0.2


def test_what_a_key_needs_is_described() -> None:
    assert "  optim.trust = 0.001  (float, only with optim.name=lars)" in describe().splitlines()
    every = set(all_keys())
    assert {key for row in keys() for text in row["only_if"] for key in re.findall(r"[a-z_]+\.[a-z_]+", text)} <= every


def test_what_a_key_decides_is_said_once() -> None:
    assert digest(load(None, ["data.threads=1", "eval.flip=true", "data.root=/x", "launch.max_restarts=1"])) == digest(
        load(None)
    )
    assert digest(load(None, ["data.flip=0"])) != digest(load(None))
    told = {row["key"]: row["kind"] for row in keys()}
    assert [told[k] for k in ("optim.lr", "train.precision", "data.executor", "seed")] == ["learned"] * 4
    assert {k for k in told if told[k] == "measured"} == {k for k in told if k.startswith("eval.")} | {
        "data.root",
        "data.quarantine",
    }
    assert {kind(k).value for k in ("track.tags.group", "expect.top1.90", "run.gone", "train.retry_s")} == {"running"}
    assert kind("gone.key").value == "learned"
