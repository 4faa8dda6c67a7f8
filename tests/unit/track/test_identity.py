import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from pipeline.track.identity import device_name, git_state, new_uid, tags, versions
from pipeline.world import World


def git(directory: Path, *arguments: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", "-C", directory, *who, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init", "--quiet", "--initial-branch=trunk")
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "a.py").write_text("a = 1\n")
    (tmp_path / ".gitignore").write_text("/venv/\n")
    (tmp_path / "venv" / "pipeline").mkdir(parents=True)
    return tmp_path


def test_commit_branch_and_dirt_of_the_code(repository):
    code = repository / "pipeline"
    assert git_state(code) == {}
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "one")
    clean = {"git.commit": git(repository, "rev-parse", "HEAD"), "git.branch": "trunk", "git.dirty": "false"}
    assert git_state(code) == clean
    assert git_state(repository) == clean
    (code / "b.py").write_text("b = 1\n")
    assert git_state(code) == clean | {"git.dirty": "true"}


def test_ignored_code_is_not_the_repositorys(repository):
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "one")
    assert git_state(repository / "venv" / "pipeline") == {}


def test_no_repository_and_no_git_give_no_tags(tmp_path, repository, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path.parent) == {}
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "one")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert git_state(repository) == {}


def test_tags_tell_machine_versions_and_command_but_no_secret(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hidden-value")
    found = tags(World(rank=0, size=4), "abc123", ["train", "a b.yaml", "track.uri=http://me:hidden@h:1"])
    assert found["world_size"] == "4"
    assert found["config.digest"] == "abc123"
    assert found["torch"] == version("torch")
    assert {"python", "torchvision", "mlflow", "dali", "host", "device"} <= found.keys()
    assert found["command"] == "train 'a b.yaml' track.uri=http://***@h:1"
    assert not any("hidden" in value for value in found.values())
    assert all(isinstance(value, str) and value for value in found.values())


def test_the_command_is_this_processs_by_default(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["prog", "x=1"])
    assert tags(World(), "d")["command"] == "prog x=1"


def test_the_device_of_a_cpu_has_a_name():
    assert device_name(torch.device("cpu")).strip()


def test_uids_differ_and_fit_a_search():
    uids = {new_uid() for _ in range(100)}
    assert len(uids) == 100
    assert all(len(uid) == 32 and uid.isalnum() for uid in uids)


def test_versions_need_no_import():
    script = (
        "import sys, pipeline.track.identity as i; i.versions(); print([m for m in ('torch', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "[]\n"
    assert versions()["python"] == ".".join(map(str, sys.version_info[:3]))
