import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch import control, scontrol, slurm
from launch.options import options
from launch.snapshot import Folder, take
from pipeline.config import load
from pipeline.errors import UsageError


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
