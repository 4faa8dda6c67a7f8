import json
import logging
import math
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.track.journal import Journal, read

VALUES = st.dictionaries(st.text(max_size=8), st.floats(), max_size=3)


@settings(deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=4), st.integers(0, 10_000))
def test_a_journal_cut_at_any_byte_gives_its_complete_lines_and_goes_on(written, byte):
    with tempfile.TemporaryDirectory() as folder:
        with Journal(Path(folder)) as journal:
            for step, values in enumerate(written):
                journal.metrics(step, values)
        whole = journal.path.read_bytes()
        cut = byte % (len(whole) + 1)
        journal.path.write_bytes(whole[:cut])
        complete = whole[:cut].count(b"\n")

        assert [record["step"] for record, _ in read(journal.path)] == list(range(complete))

        with Journal(Path(folder)) as journal:
            journal.event("log", text="back")
        found = list(read(journal.path))
        assert [r["step"] for r, _ in found[:-1]] == list(range(complete))
        assert found[-1][0]["text"] == "back"
        assert found[-1][1] == len(journal.path.read_bytes())


@settings(deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=5), st.data())
def test_reading_from_any_returned_offset_gives_the_rest(written, data):
    with tempfile.TemporaryDirectory() as folder:
        with Journal(Path(folder)) as journal:
            for step, values in enumerate(written):
                journal.metrics(step, values)
        found = list(read(journal.path))
        n = data.draw(st.integers(0, len(found) - 1))
        assert list(read(journal.path, found[n][1])) == found[n + 1 :]


@settings(deadline=None)
@given(VALUES)
def test_metrics_come_back_as_they_were_and_lines_are_strict_json(values):
    def refuse(constant):
        raise AssertionError(constant)

    with tempfile.TemporaryDirectory() as folder:
        with Journal(Path(folder)) as journal:
            journal.metrics(3, values)
        record = json.loads(journal.path.read_text(), parse_constant=refuse)
    back = {key: float(value) for key, value in record["values"].items()}
    assert back.keys() == values.keys()
    assert all(back[key] == value or (math.isnan(back[key]) and math.isnan(value)) for key, value in values.items())


def test_each_line_is_on_its_way_before_the_next_call(tmp_path):
    journal = Journal(tmp_path)
    for step in range(3):
        journal.metrics(step, {"loss": 1.0})
        assert [r["step"] for r, _ in read(journal.path)] == list(range(step + 1))
    journal.close()


def test_values_become_plain_and_credentials_stay_out(tmp_path):
    with Journal(tmp_path) as journal:
        journal.event(
            "log", config={"track.uri": "http://me:pw@host:5000/x", "eps": math.nan}, path=tmp_path / "a", crop=(1, 2)
        )
    assert "pw" not in journal.path.read_text()
    ((record, _),) = read(journal.path)
    assert record["config"] == {"track.uri": "http://***@host:5000/x", "eps": "nan"}
    assert record["path"] == str(tmp_path / "a")
    assert record["crop"] == [1, 2]


def test_a_line_of_something_else_is_passed_over_with_a_warning(tmp_path, caplog):
    with Journal(tmp_path) as journal:
        journal.metrics(1, {"loss": 1.0})
    with journal.path.open("ab") as file:
        file.write(b"\0" * 20 + b"\n[1]\n")
    with Journal(tmp_path) as journal, caplog.at_level(logging.WARNING):
        journal.metrics(2, {"loss": 1.0})
        assert [r["step"] for r, _ in read(journal.path)] == [1, 2]
    assert len(caplog.messages) == 2
    assert str(journal.path) in caplog.messages[0]


def test_a_directory_that_cant_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file: can't write journal.jsonl: Not a directory; choose another run.dir"):
        Journal(tmp_path / "file")


FULL = """
import resource, sys
from pathlib import Path
from pipeline.errors import TransientError
from pipeline.track.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.event("log", text="short")
resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
try:
    journal.event("log", text="x" * 1000)
except TransientError as error:
    print(error)
journal.event("log", text="short too")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of file sizes")
def test_a_full_disk_is_an_error_and_leaves_no_half_line(tmp_path, child):
    said, _ = child(FULL, tmp_path).communicate()
    assert f"{tmp_path / 'journal.jsonl'}: can't write the journal: " in said
    assert [r["text"] for r, _ in read(tmp_path / "journal.jsonl")] == ["short", "short too"]
