import json
import subprocess

from pipeline.track.environment import describe, diff


def git(directory, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(directory), *identity, *arguments], check=True, capture_output=True)


def test_the_environment_is_told_whole():
    found = describe()
    json.dumps(found, allow_nan=False)
    assert found["packages"]["torch"].startswith("2.")
    assert found["cpu"]["cores"] >= found["cpu"]["usable_cores"] >= 1
    assert found["cpu"]["memory"] > 1e9 and found["cpu"]["model"]


def test_a_diff_tells_what_no_commit_holds(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("x = 1\n")
    assert diff(tmp_path) is None
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-qm", "first")
    assert diff(tmp_path) is None
    (tmp_path / "code.py").write_text("x = 'http://me:hidden@host/'\n")
    (tmp_path / "new.py").write_text("y = 1\n")
    told = diff(tmp_path)
    assert "-x = 1\n+x = 'http://***@host/'" in told
    assert told.endswith("untracked: new.py\n")
