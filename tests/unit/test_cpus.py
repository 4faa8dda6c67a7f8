import os
import subprocess
import sys

from pipeline import cpus


def test_only_the_cores_that_the_process_may_use_count() -> None:
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); from pipeline import cpus; print(cpus.available())"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "1\n"
    assert cpus.available() == len(os.sched_getaffinity(0))
