"""pyproject's ranges, the constraints file and what is installed say the same."""

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

PINS = {
    req.name.lower().replace("_", "-"): req
    for req in (Requirement(line) for line in Path("constraints.txt").read_text().splitlines() if line[:1] not in ("", "#"))
}


def declared() -> list[Requirement]:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    return [Requirement(r) for r in project["dependencies"] + project["optional-dependencies"]["dev"]]


def pinned(req: Requirement) -> str:
    (spec,) = PINS[req.name.lower().replace("_", "-")].specifier
    assert spec.operator == "=="
    return spec.version


def test_every_range_has_a_pin_within_it() -> None:
    for req in declared():
        assert req.specifier.contains(pinned(req)), req


def test_the_pins_are_installed() -> None:
    for req in declared():
        assert version(req.name).split("+")[0] == pinned(req), req.name
    for name, req in PINS.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            continue  # a dependency of another platform
        assert req.specifier.contains(found.split("+")[0]), f"{name} {found} is installed, {req} is pinned"


def test_no_file_names_a_package_index() -> None:
    for path in ("pyproject.toml", "constraints.txt", "Makefile", ".ci/run"):
        assert not re.search(r"index-url|find-links|https?://[^\s]*(pypi|simple)", Path(path).read_text()), path


def test_the_python_is_new_enough() -> None:
    assert sys.version_info >= (3, 11)
