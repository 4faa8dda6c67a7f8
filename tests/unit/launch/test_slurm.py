import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch import commands, control, scontrol, slurm
from launch.options import options
from launch.snapshot import Folder, take
from pipeline.config import load
from pipeline.errors import ConfigError, UsageError
from pipeline.track.journal import Journal


def request(digits: Path, root: Path, *more: str, **asked: object) -> slurm.Request:
    cfg = load(Path("configs/demo.yaml"), [f"data.root={digits}", f"run.root={root}", "batch.micro=8", *more])
    return slurm.request(cfg, options(None, asked), ["python", "-m", "launch"])


def test_a_dry_run_says_all_and_writes_nothing(digits: Path, tmp_path: Path) -> None:
    asked = {
        "nodes": 2,
        "gpus_per_node": 2,
        "time": "1:30:00",
        "partition": "p",
        "setup": ("module load x",),
    }
    more = {
        "set": {"nice": "5"},
        "container_image": "img.sqsh",
        "container_mounts": "/a:/a",
        "cpus_per_task": 3,
        "mem": "9G",
        "reservation": "r",
    }
    found = slurm.dry_run(request(digits, tmp_path, **asked, **more))
    for line in (
        "#SBATCH --nodes=2",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --time=90",
        "#SBATCH --partition=p",
        "#SBATCH --signal=USR2@120",
        "#SBATCH --requeue",
        "#SBATCH --nice=5",
        "#SBATCH --mem=9G",
        "#SBATCH --reservation=r",
        "module load x",
    ):
        assert line in found["script"].splitlines(), line
    assert "--kill-on-bad-exit=1 --cpus-per-task=3 --container-image=img.sqsh --container-mounts=/a:/a" in found["script"]
    assert (found["plan"]["world_size"], found["gpus"], found["gpu_hours"]) == (4, 4, 6.0)
    assert list(tmp_path.iterdir()) == []
    assert "steps           440, 44 an epoch" in slurm.render_dry_run(found)


def test_the_script_is_good_shell(digits: Path, tmp_path: Path) -> None:
    checker = Path(sys.executable).with_name("shellcheck")
    script = tmp_path / "job.sh"
    script.write_text(slurm.dry_run(request(digits, tmp_path, nodes=2))["script"])
    subprocess.run(["bash", "-n", script], check=True)
    if checker.is_file():
        subprocess.run([checker, script], check=True)


def test_the_snapshot_runs_whatever_becomes_of_the_checkout(digits: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    (run_dir / "launch").mkdir(parents=True)
    one = request(digits, tmp_path)
    folder = take(slurm.placed(one.cfg, run_dir), run_dir, None, one.command)
    assert load(folder.config).run.dir == run_dir
    about = json.loads((folder.path / "environment.json").read_text())
    assert about["packages"]["torch"] and about["python"] == sys.executable
    where = "import pipeline, launch; print(pipeline.__file__, launch.__file__)"
    env = {"PYTHONPATH": str(folder.code), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", where], capture_output=True, text=True, check=True, env=env)
    assert all(path.startswith(str(folder.code)) for path in done.stdout.split())


@pytest.mark.skipif(shutil.which("srun") is not None, reason="there is SLURM on this machine")
def test_without_slurm(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no SLURM on this machine"):
        slurm.submit(request(digits, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_submitted_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run that was submitted"):
        Folder(tmp_path).read()


def test_a_refusal_is_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    from submitit.core.utils import CommandFunction

    refusing = CommandFunction([sys.executable, "-c", "raise SystemExit('sbatch: error: no such dependency')"], verbose=False)
    with pytest.raises(UsageError, match=r"^sbatch: no such dependency; nothing was submitted$"):
        slurm.call(refusing)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("sbatch: unrecognized option '--foo=bar'\nTry \"sbatch --help\" for more", "unrecognized option '--foo=bar'"),
        ("sbatch: error: Memory specification can not be satisfied\nsbatch: error: Batch job submission failed: Not available",
         "Memory specification can not be satisfied; Batch job submission failed: Not available"),
        ("", "no reason given"),
    ],
)  # fmt: skip
def test_the_reason_of_a_refusal_is_shown(said: str, reason: str) -> None:
    from submitit.core.utils import FailedJobError

    def refused() -> None:
        raise FailedJobError(said)

    with pytest.raises(UsageError) as caught:
        slurm.call(refused)
    assert str(caught.value) == f"sbatch: {reason}; nothing was submitted"


def test_a_refused_submission_has_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*command: str) -> str:  # as scontrol does where no id is given
        assert command[-1] != ""
        return "JobId=9 JobState=RUNNING"

    monkeypatch.setattr(scontrol, "call", answer)
    folder = Folder(tmp_path)
    folder.path.mkdir()
    folder.write({"job": "", "log": "", "options": options(None, {}).model_dump(mode="json")})
    slurm.refuse_a_second(folder)
    assert [(row["job"], row["state"]) for row in control.states([folder])] == [("", "GONE")]
    with pytest.raises(UsageError, match="no job to end"):
        control.cancel(folder)
    with pytest.raises(UsageError, match=r"no log yet \(no job"):
        control.logs(folder, False, None, print)


def test_slurm_must_not_expand_a_run_directory(digits: Path, tmp_path: Path) -> None:
    for where in (f"run.dir={tmp_path / 'a%j'}", "run.name=50%"):
        one = request(digits, tmp_path, where)
        for ask in (slurm.dry_run, slurm.submit):
            with pytest.raises(UsageError, match="SLURM would expand the %"), pytest.MonkeyPatch.context() as patch:
                patch.setattr(slurm, "check", lambda options: None)
                ask(one)
    assert list(tmp_path.iterdir()) == []


def test_printed_commands_can_be_pasted() -> None:
    shown = slurm.render({"run_dir": "/a b/run", "job": "7", "log": "/a b/x"})
    assert "launch cancel '/a b/run'" in shown and "runs --root '/a b'" in shown


def test_flags_of_sbatch(digits: Path, tmp_path: Path) -> None:
    asked: dict[str, object] = {"set_": ("hold", "exclusive=true", "reboot=", "nice=5"), "site": None}
    found = commands.read(Path("configs/demo.yaml"), (f"data.root={digits}", f"run.root={tmp_path}", "batch.micro=8"), asked)
    lines = slurm.dry_run(found)["script"].splitlines()
    assert {f"#SBATCH --{one}" for one in ("hold", "exclusive", "reboot", "nice=5")} <= set(lines)
    with pytest.raises(UsageError, match="--set: write KEY=VALUE"):
        commands.read(Path("configs/demo.yaml"), (), {"set_": ("=5",), "site": None})


def test_the_name_of_a_config_file_can_name_a_run(tmp_path: Path) -> None:
    path = tmp_path / "a\nb.yaml"
    path.write_text("seed: 1\n")
    with pytest.raises(UsageError, match="control characters"):
        commands.read(path, (), {"set_": (), "site": None})
    assert commands.read(path, ("run.name=x",), {"set_": (), "site": None}).cfg.run.name == "x"


@pytest.fixture
def submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A run whose job has ended; nothing asks SLURM."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scontrol, "job", scontrol.Job)
    monkeypatch.setattr(slurm, "check", lambda options: None)
    folder = Folder(tmp_path / "run")
    folder.path.mkdir(parents=True)
    given = options(None, {"time": "90"}).model_dump(mode="json")
    folder.write({"job": "7", "cwd": str(tmp_path / "gone"), "command": [], "options": given, "tags": {}, "log": ""})
    return folder


def asked(**given: object) -> dict[str, object]:
    return {"exclude": None, "time": None, "exclude_failed": False} | given


def test_what_can_not_be_resubmitted(submitted: Folder) -> None:
    with pytest.raises(ConfigError, match=r"^--time: 'foo' is not a time limit"):
        control.resubmit(submitted, asked(time="foo"))
    with pytest.raises(ConfigError, match=r"^--time: 1 min is no longer than --signal-delay-s"):
        control.resubmit(submitted, asked(time="1"))
    with pytest.raises(UsageError, match=r"submitted from .*gone: No such file"):
        control.resubmit(submitted, asked())
    with Journal(submitted.run_dir) as journal:
        journal.event("run", uid="u", name="n", config={}, plan={}, tags={}, resumed_from_step=None)
        journal.event("status", status="FINISHED", reason="")
    with pytest.raises(UsageError, match="the run has finished"):
        control.resubmit(submitted, asked())


def test_a_run_that_can_not_be_read_hides_no_other(submitted: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    root = submitted.run_dir.parent
    for name, text in (("empty", "{}"), ("broken", "\x00"), ("list", "[]")):
        path = Folder(root / name).submission
        path.parent.mkdir(parents=True)
        path.write_text(text)
    rows = control.states(control.find((), root))
    assert [row["job"] for row in rows] == ["7"]
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 3 and all(line.startswith("warning: ") for line in warnings)
    assert control.find(("7",), root)[0].run_dir == submitted.run_dir  # which has no launch/config.yaml
    with pytest.raises(UsageError, match="names no job"):
        control.find((str(root / "empty"),), root)[0].read()
