import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.track.cursor import POINTS_PER_CALL, Cursor, pieces
from pipeline.track.journal import Journal

# Lives of a training: each goes on from a step and gets to another before it is killed.
LIVES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=4)


def live(journal: Journal, lives: list[tuple[int, int]]) -> set[tuple[str, int]]:
    written = set()
    for life, (start, n) in enumerate(lives):
        journal.event("run", uid="a1")
        for step in range(start, start + n):
            journal.metrics(step, {"loss": life, **({"acc": life} if step % 2 else {})})
            written |= {("loss", step), *([("acc", step)] if step % 2 else [])}
    return written


@settings(deadline=None)
@given(LIVES)
def test_each_metric_and_step_is_shipped_once_and_as_it_was_first_written(lives):
    with tempfile.TemporaryDirectory() as folder:
        with Journal(Path(folder)) as journal:
            written = live(journal, lives)
        points = [point for piece in pieces(journal.path, 0, {}) for point in piece.points]
    keys = [(point.key, point.step) for point in points]
    assert len(keys) == len(set(keys))
    highest = {key: -1 for key, _ in written}
    for life, (start, n) in enumerate(lives):
        for step in range(start, start + n):
            for key in ("loss", "acc") if step % 2 else ("loss",):
                if step > highest[key]:
                    highest[key] = step
                    assert next(p.value for p in points if (p.key, p.step) == (key, step)) == life
                    keys.remove((key, step))
    assert keys == []


@settings(deadline=None)
@given(LIVES, st.data())
def test_going_on_after_any_piece_ships_the_same_rest(lives, data):
    with tempfile.TemporaryDirectory() as folder:
        with Journal(Path(folder)) as journal:
            live(journal, lives)
        whole = list(pieces(journal.path, 0, {}))
        n = data.draw(st.integers(0, len(whole) - 1))
        assert list(pieces(journal.path, whole[n].offset, whole[n].high_water)) == whole[n + 1 :]


def test_pieces_are_about_as_large_as_a_call_and_lose_nothing(tmp_path):
    n = 2 * POINTS_PER_CALL + 500
    with Journal(tmp_path) as journal:
        for step in range(n):
            journal.metrics(step, {"loss": 0.5})
    found = list(pieces(journal.path, 0, {}))
    assert [len(piece.points) for piece in found] == [POINTS_PER_CALL, POINTS_PER_CALL, 500]
    assert [point.step for piece in found for point in piece.points] == list(range(n))
    assert found[-1].offset == journal.path.stat().st_size
    assert all(abs(point.t_ms / 1000 - journal.path.stat().st_mtime) < 3600 for point in found[0].points)


def test_a_cursor_comes_back_from_its_file_and_a_broken_file_counts_as_none(tmp_path):
    assert Cursor.load(tmp_path) is None
    cursor = Cursor("http://host", "e", "r1", 17, {"loss": 3})
    cursor.save(tmp_path)
    assert Cursor.load(tmp_path) == cursor
    for broken in ("", "{", "[]", '{"uri": 1, "else": 2}'):
        (tmp_path / "mlflow.json").write_text(broken)
        assert Cursor.load(tmp_path) is None


def test_a_cursor_past_a_shortened_journal_does_not_fit(tmp_path):
    with Journal(tmp_path) as journal:
        journal.event("log", text="one")
        end = journal.path.stat().st_size
        journal.event("log", text="two")
    for offset, fits in ((0, True), (end, True), (end - 1, False), (end + 5, False), (10 * end, False)):
        assert Cursor("u", "e", offset=offset).fits(journal.path) is fits, offset


def test_only_what_goes_to_mlflow_ends_a_piece(tmp_path, begin):
    with Journal(tmp_path) as journal:
        begin(journal)
        journal.event("log")
        journal.metrics(1, {"loss": 1.0})
        journal.event("log")
        journal.event("artifact", path="a.txt")
        journal.event("warning", step=1, text="slow")
        journal.event("status", status="FINISHED")
        journal.event("log")
    found = [(len(piece.points), piece.event and piece.event["kind"]) for piece in pieces(journal.path, 0, {})]
    assert found == [(0, "run"), (1, "artifact"), (0, "warning"), (0, "status"), (0, None)]
