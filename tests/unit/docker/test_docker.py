"""The image's files, as far as they can be checked where no container engine runs."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

BIN = Path(sys.executable).parent
DOCKERFILE = Path("docker/Dockerfile")


def check(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_is_clean() -> None:
    check(BIN / "hadolint", DOCKERFILE)


def test_the_compose_file_fits_its_schema() -> None:
    check(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker/compose.yaml")


def test_ci_is_clean_shell() -> None:
    check(BIN / "shellcheck", ".ci/run")


def copied() -> list[tuple[list[str], str]]:
    """Sources and destination of each COPY from the build context, of the first stage."""
    stage = DOCKERFILE.read_text().split("\nFROM ")[1]
    rows = [line.split()[1:] for line in stage.splitlines() if line.startswith("COPY")]
    return [(row[:-1], row[-1]) for row in rows]


def test_what_is_copied_is_not_ignored() -> None:
    kept = [line[1:] for line in Path(".dockerignore").read_text().splitlines() if line.startswith("!")]
    for sources, _ in copied():
        assert all(any(fnmatch.fnmatch(source, pattern) for pattern in kept) for source in sources)


def test_the_steps_of_the_image_as_plain_commands(tmp_path: Path) -> None:
    """In a fresh virtual environment that borrows the installed dependencies: to download them takes minutes."""
    source, fresh = tmp_path / "src", tmp_path / "venv"
    source.mkdir()
    for sources, destination in copied():
        for one in sources:
            target = source / (one if destination == "./" else destination)
            shutil.copytree(one, target) if Path(one).is_dir() else shutil.copy(one, target)
    venv.create(fresh, symlinks=True, with_pip=True)
    packages = fresh / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    here = next(path for path in sys.path if path.endswith("site-packages"))
    (packages / "borrowed.pth").write_text(f"{here}\n")
    (step,) = re.findall(r"^RUN /opt/venv/bin/python (-m pip install .*)$", DOCKERFILE.read_text(), re.M)
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [fresh / "bin" / "python", *step.split(), "--no-deps", "--no-build-isolation", "--force-reinstall", "--quiet"]
    subprocess.run(command, check=True, cwd=source, env=env)
    for module in ("pipeline", "launch"):
        where = [fresh / "bin" / "python", "-P", "-c", f"import {module}; print({module}.__file__)"]
        found = subprocess.run(where, capture_output=True, text=True, check=True, cwd=tmp_path, env=env).stdout
        assert found.startswith(str(packages)), found
        subprocess.run(
            [fresh / "bin" / "python", "-m", module, "--help"], check=True, cwd=tmp_path, env=env, capture_output=True
        )
