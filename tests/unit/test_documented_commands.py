"""Each documented command that starts several processes resolves to a plan: no recipe refuses the world it is shown with."""

import re
import shlex
from pathlib import Path

import pytest

from pipeline.config import load, make_plan
from pipeline.errors import ConfigError, WorldError

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "docker" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SIZES = re.compile(r"--(nnodes|nproc-per-node|nodes|gpus-per-node)[ =](\d+)(?::(\d+))?")


def commands() -> list[tuple[str, str, tuple[str, ...], int]]:
    """Return page, config, overrides and world of each command that names a recipe and a number of processes."""
    found = []
    for page in PAGES:
        for line in page.read_text().replace("\\\n", " ").splitlines():
            for text in re.findall(r"`([^`]+)`", line) or [line]:
                if "configs/" in text and SIZES.search(text):
                    found += [(page.name, *_read(text), world) for world in _worlds(text)]
    return found


def _read(text: str) -> tuple[str, tuple[str, ...]]:
    words = shlex.split(text, comments=True)
    config = next(word for word in words if word.startswith("configs/"))
    overrides = [word for word in words if re.fullmatch(r"[a-z]+(\.[a-z_]+)?=[^,]*", word)]
    return config, tuple(word for word in overrides if ".." not in word)  # a sweep's values


def _worlds(text: str) -> list[int]:
    sizes = {name: (int(low), int(high or low)) for name, low, high in SIZES.findall(text)}
    nodes = sizes.get("nnodes", sizes.get("nodes", (1, 1)))
    low, high = sizes.get("nproc-per-node", sizes.get("gpus-per-node", (1, 1)))
    return sorted({nodes[0] * low, nodes[1] * high})


def test_there_are_such_commands_on_each_of_the_pages() -> None:
    assert {page for page, *_ in commands()} >= {"README.md", "slurm.md", "torchrun.md"}
    assert any(world == 16 for *_, world in commands())


@pytest.mark.parametrize(("page", "config", "overrides", "world"), commands())
def test_a_documented_command_is_not_refused(page: str, config: str, overrides: tuple[str, ...], world: int) -> None:
    cfg = load(ROOT / config, overrides)
    images = cfg.expect.images or 1_281_167
    assert make_plan(cfg, world_size=world, train_images=images, val_images=50_000, classes=1000).world_size == world


@pytest.mark.parametrize("config", sorted((ROOT / "configs" / "resnet50").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_refusal_of_a_recipe_names_what_works(config: Path) -> None:
    try:
        plan = make_plan(load(config), world_size=16, train_images=1_281_167, val_images=50_000, classes=1000)
    except (WorldError, ConfigError) as error:
        remedy = re.search(r"set (batch\.micro=\d+)", str(error))
        assert remedy, error
        plan = make_plan(load(config, [remedy[1]]), world_size=16, train_images=1_281_167, val_images=50_000, classes=1000)
    assert plan.accumulation >= 1
