import os
import shutil
import sqlite3
import threading
import time
from contextlib import closing

import pytest

from pipeline.errors import UsageError
from pipeline.track import store
from pipeline.track.journal import Journal
from pipeline.track.shipper import sync
from pipeline.track.tracker import connect


@pytest.fixture
def database(template, tmp_path, uri):
    """A whole database that nobody has changed for an hour."""
    path = tmp_path / "mlflow.db"
    os.utime(path, (time.time() - 3600,) * 2)
    return path


def change(database, *statements):
    with closing(sqlite3.connect(database)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
    os.utime(database, (time.time() - 3600,) * 2)


def ready(database):
    with store.ready(database):
        return store.revision(database)


def aside(database):
    return list(database.parent.glob("mlflow.db.*-*"))


def test_a_store_that_a_kill_has_left_half_made_is_kept_aside_and_made_anew(database, uri, template, begin, caplog):
    change(database, "DELETE FROM alembic_version", "CREATE TABLE witness (a)")
    run_dir = database.parent / "run"
    run_dir.mkdir()
    with Journal(run_dir) as journal:
        begin(journal)
        journal.metrics(1, {"loss": 1.0})
    assert sync(run_dir, uri, "tests").points == 1
    (message,) = [text for text in caplog.messages if "made anew" in text]
    (kept,) = aside(database)
    assert kept.name in message and "python -m pipeline sync RUN_DIR" in message and "\n" not in message
    with closing(sqlite3.connect(kept)) as connection:
        assert connection.execute("SELECT count(*) FROM witness").fetchone() == (0,)
    assert store.revision(database) == store.revision(template)


def test_a_store_of_an_older_mlflow_is_upgraded_as_a_whole_and_keeps_what_it_holds(template, tmp_path):
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config, create_sqlalchemy_engine
    from mlflow.store.tracking.dbmodels.initial_models import Base

    old = tmp_path / "mlflow.db"
    engine = create_sqlalchemy_engine(f"sqlite:///{old}")
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        config = _get_alembic_config(f"sqlite:///{old}")
        config.attributes["connection"] = connection
        command.upgrade(config, "451aebb31d03")
    engine.dispose()
    change(old, "INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (7, 'before', 'active')")
    assert connect(f"sqlite:///{old}").get_experiment_by_name("before").experiment_id == "7"
    assert store.revision(old) == store.revision(template)
    assert [store.revision(path) for path in aside(old)] == ["451aebb31d03"]
    assert ready(old) == store.revision(template)
    assert len(aside(old)) == 1


@pytest.mark.parametrize(
    "content", [b"no database at all, but a file of the user's " * 100, b"SQLite format 3\0" + b"\xff" * 4000]
)
def test_a_file_that_is_no_database_stays_where_it_is(tmp_path, content):
    database = tmp_path / "mlflow.db"
    database.write_bytes(content)
    with pytest.raises(sqlite3.DatabaseError):
        ready(database)
    assert database.read_bytes() == content
    assert aside(database) == []


def test_a_pipe_is_named(tmp_path):
    os.mkfifo(tmp_path / "mlflow.db")
    with pytest.raises(UsageError, match="mlflow.db: not a regular file"):
        ready(tmp_path / "mlflow.db")


def test_a_store_of_a_newer_mlflow_stays_as_it_is(database):
    from alembic.util import CommandError

    change(database, "UPDATE alembic_version SET version_num = 'feedfeedfeed'")
    with pytest.raises(CommandError, match="feedfeedfeed"):
        ready(database)
    assert store.revision(database) == "feedfeedfeed"
    assert aside(database) == []


def test_a_full_disk_leaves_no_store_and_nothing_behind(tmp_path, child):
    said, _ = child(FULL, tmp_path / "mlflow.db").communicate()
    assert said.startswith("refused ") and ("disk" in said or "large" in said), said
    assert [path.name for path in tmp_path.iterdir() if path.name != "mlflow.db.lock"] == []
    assert ready(tmp_path / "mlflow.db")


FULL = """
import resource, sys
from pathlib import Path
from pipeline.track.store import ready
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    with ready(Path(sys.argv[1])):
        print("made")
except Exception as error:
    print("refused", type(error).__name__, str(error)[:200])
"""


def test_what_killed_makers_have_left_is_removed(template, tmp_path):
    for name in (".mlflow.db.17.tmp", ".mlflow.db.17.tmp-journal", ".other.db.17.tmp"):
        (tmp_path / name).write_bytes(b"half")
    ready(tmp_path / "mlflow.db")
    assert {path.name for path in tmp_path.iterdir()} == {".other.db.17.tmp", "mlflow.db", "mlflow.db.lock"}


def test_a_store_that_another_program_is_making_is_waited_for(database, template):
    change(database, "DELETE FROM alembic_version")
    os.utime(database)

    def finish():
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("INSERT INTO alembic_version VALUES (?)", (store.revision(template),))
            connection.commit()

    timer = threading.Timer(0.5, finish)
    timer.start()
    assert ready(database) == store.revision(template)
    timer.join()
    assert aside(database) == []


def test_a_store_that_another_program_is_writing_to_is_not_replaced(database):
    change(database, "PRAGMA journal_mode = WAL", "DELETE FROM alembic_version")
    with closing(sqlite3.connect(database)) as other:
        other.execute("CREATE TABLE more (a)")
        os.utime(database, (time.time() - 3600,) * 2)
        with pytest.raises(UsageError, match="another process has it open"):
            ready(database)
    assert aside(database) == []


def test_reading_needs_no_place_to_write(database, template):
    shutil.copy(template, database)
    database.parent.joinpath("mlflow.db.lock").mkdir()  # can't be taken
    assert ready(database) == store.revision(template)
