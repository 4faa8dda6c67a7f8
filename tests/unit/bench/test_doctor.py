"""The doctor finds this installation fit, and says what is broken in one that is not."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.bench import doctor


def test_the_health_check_of_the_image_passes_here() -> None:
    (line,) = [line for line in Path("docker/Dockerfile").read_text().splitlines() if line.startswith("HEALTHCHECK")]
    _, *arguments = [word.strip('[",]') for word in shlex.split(line.partition("CMD")[2])]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row.split()[0] for row in done.stdout.splitlines()} <= {"ok", "warning"}
    assert "of 255 steps from PIL" in done.stdout


def test_a_broken_library_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ImportError("libnvjpeg.so.13: cannot open shared object file\nand more")

    monkeypatch.setattr(doctor, "_images", broken)
    found = {one.check: one for one in doctor.examine()}
    assert found["images"].state == "failed" and found["mlflow"].state == "ok"
    assert found["images"].said == (
        "ImportError: libnvjpeg.so.13: cannot open shared object file; install anew with make install"
    )


def test_executors_that_differ_are_no_health(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = doctor._batch
    monkeypatch.setattr(doctor, "_batch", lambda root, executor: batch(root, executor) // (1 + (executor == "auto")))
    found = {one.check: one for one in doctor.examine()}
    assert found["images"].state == "failed"
