"""The sqlite database of a local tracking store: made and upgraded whole or not at all, whenever its maker is killed."""

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.files import write_atomically
from pipeline.output import printable
from pipeline.track.lock import FileLock

_log = logging.getLogger(__name__)
_SETTLED_S = 10.0
"""Seconds without a change after which nobody is taken to be making a database: MLflow itself does not know our lock."""
_UNSAFE = "PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY"
_ROOM_OR_ACCESS = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}


@contextmanager
def ready(database: Path) -> Iterator[None]:
    """Make the database if it is missing, bring it to MLflow's present schema, and keep others out meanwhile.

    MLflow works on a file beside it, which takes its place once it is complete and on the disk. A database that can't be
    brought to that schema, since a process died while it made or upgraded it in place, is kept aside and made anew.

    Raises:
        UsageError: if it is no regular file, another process has it open in the middle of a change, or there is no room.
        Exception: what sqlite and MLflow raise.
    """
    database.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(database.with_name(database.name + ".lock"))
    try:
        lock.acquire(wait=True)
    except OSError:
        # Beside a database that may only be read nobody can make one either.
        if not database.is_file():
            raise
    try:
        _ensure(database)
        yield
    finally:
        lock.release()


def _ensure(database: Path) -> None:
    from mlflow.store.db.utils import _get_latest_schema_revision

    latest = str(_get_latest_schema_revision())
    found = revision(database)
    if found not in (latest, None):
        found = _settled(database, latest)
    if found == latest:
        return
    _remove_unfinished(database)  # of makers that were killed
    if found is None:
        _put(database, _migrate)
        return
    _refuse_open(database)
    try:
        _put(database, lambda copy: _upgrade(database, copy, found))
    except Exception as error:
        if not _half_made(error):
            raise
        aside = _aside(database, "broken")
        database.rename(aside)
        _log.warning(
            "%s: a process died while it made this store; kept as %s and made anew; `python -m pipeline sync RUN_DIR...` "
            "brings runs back from their journals",
            printable(str(database)),
            aside.name,
        )
        _put(database, _migrate)


def _put(database: Path, write: Callable[[Path], None]) -> None:
    try:
        write_atomically(database, write)
    finally:
        _remove_unfinished(database)


def _remove_unfinished(database: Path) -> None:
    for path in database.parent.glob(f".{database.name}.*.tmp*"):
        path.unlink(missing_ok=True)


def revision(database: Path) -> str | None:
    """Return the revision of a database's schema: empty if it has tables but no revision, None if it has no tables."""
    if not database.exists():
        return None
    if not database.is_file() and not database.is_dir():  # a directory sqlite refuses by itself
        raise UsageError(f"{database}: not a regular file; name another database (track.uri)")
    with closing(sqlite3.connect(database)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "alembic_version" not in tables:
            return "" if tables else None
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return str(row[0]) if row else ""


def _settled(database: Path, latest: str) -> str | None:
    """Return the revision once nobody is changing it, such as an `mlflow server` that makes the same database."""
    while 0 <= time.time() - database.stat().st_mtime < _SETTLED_S:
        if revision(database) == latest:
            break
        time.sleep(0.2)
    return revision(database)


def _refuse_open(database: Path) -> None:
    """Refuse to replace a database of which a part is in another process's journal."""
    beside = [Path(f"{database}{end}") for end in ("-journal", "-wal")]
    if any(path.exists() for path in beside):
        raise UsageError(
            f"{database}: must be upgraded, but another process has it open; stop that one (`mlflow server`?) first"
        )


def _upgrade(database: Path, copy: Path, found: str) -> None:
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    _migrate(copy, new=not found)
    if found:
        aside = _aside(database, found)
        aside.hardlink_to(database)
        _log.warning(
            "%s: made by an older MLflow, or not completely; upgraded, and as it was kept as %s; restart programs that "
            "have it open",
            printable(str(database)),
            aside.name,
        )


def _migrate(database: Path, *, new: bool = True) -> None:
    """Let MLflow make all tables, or bring those that are there to its present schema."""
    from mlflow.store.db.utils import _initialize_tables, _upgrade_db, create_sqlalchemy_engine
    from sqlalchemy import event

    act: Callable[[object], None] = _initialize_tables if new else _upgrade_db
    engine = create_sqlalchemy_engine(f"sqlite:///{database}")
    # Nobody reads it before it is flushed as a whole: to do so after each of some hundred changes only takes time.
    event.listen(engine, "connect", lambda connection, _: connection.executescript(_UNSAFE))
    try:
        act(engine)
    finally:
        engine.dispose()


def _half_made(error: BaseException | None) -> bool:
    """Return whether a migration failed because of the tables that it found, not for want of room or access."""
    from alembic.util import CommandError

    while error is not None:
        if isinstance(error, OSError | MemoryError | UsageError | CommandError):  # the last: of a newer MLflow
            return False
        code = getattr(error, "sqlite_errorcode", None)
        if code is not None:
            return code & 0xFF not in _ROOM_OR_ACCESS
        error = error.__cause__ or error.__context__
    return True


def _aside(database: Path, why: str) -> Path:
    """Return a name beside the database that is free."""
    return database.with_name(f"{database.name}.{why}-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 1000:03d}")
