"""Whatever stands in a run directory, reading it gives records that are whole, or nothing; never an error of Python's own."""

import json
import tempfile
import tracemalloc
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pipeline.track import mapping
from pipeline.track.cursor import Cursor, pieces
from pipeline.track.curves import collect
from pipeline.track.journal import lines, milliseconds, read
from pipeline.track.runs import read_run

ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([10**30, -1, "../x", "/x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
DATASET = {"name": "n", "digest": "d", "context": "training", "source": "s", "images": 1, "classes": 1}
WHOLE = [
    {
        "kind": "run",
        "uid": "a1",
        "name": "n",
        "config": {"a": 1},
        "plan": {"total_steps": 5},
        "tags": {"t": "x"},
        "datasets": [DATASET],
    },
    {"kind": "status", "status": "FINISHED", "reason": "", "step": 3},
    {"kind": "metrics", "step": 3, "values": {"a": 1.0}},
    {"kind": "artifact", "path": "a.txt", "artifact_path": "config"},
    {"kind": "model", "path": "m", "register": "name", "metric": "val_top1", "value": 0.5},
    {"kind": "warning", "step": 3, "text": "slow"},
]
CURSOR = {"uri": "http://h", "experiment": "e", "run_id": "r", "offset": 1, "high_water": {"a": 1}, "failed": [], "refused": {}}


@st.composite
def spoiled(draw, whole):
    """A record with one of its fields replaced, or removed."""
    record = dict(draw(st.sampled_from(whole)))
    key = draw(st.sampled_from(sorted(record)))
    if draw(st.booleans()):
        record[key] = draw(ODD)
    else:
        del record[key]
    return record


@given(st.lists(spoiled([{"t": 1.0} | record for record in WHOLE]) | ODD, max_size=4))
def test_journals(records):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        for record, _ in read(path):
            assert 0 <= milliseconds(record) < 2**63
            if record["kind"] == "run":
                found = mapping.params(record) | mapping.tags(record, path.parent)
                assert all(mapping.name(key) == key and value.encode() is not None for key, value in found.items())
                assert all(map(mapping.counts, record.get("datasets") or ()))
            elif record["kind"] == "warning":
                mapping.tag(record.get("text", ""))
        for piece in pieces(path, 0, {}):
            assert all(abs(point.step) <= 2**63 for point in piece.points)
        collect(path)
        read_run(path.parent, whole=False)


FAILED = {"event": {"t": 1.0} | WHOLE[3], "reason": "x"}


@given(spoiled([CURSOR]) | st.binary(max_size=50), st.lists(spoiled([FAILED]) | ODD, max_size=1))
def test_cursors(content, failed):
    if isinstance(content, dict) and "failed" in content and failed:
        content["failed"] = failed
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mlflow.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        found = Cursor.load(path.parent)
        if found is not None:
            found.save(path.parent)
            assert Cursor.load(path.parent) == found
            path.with_name("journal.jsonl").write_bytes(b"\n\n\n")
            found.fits(path.with_name("journal.jsonl"))
            assert all({"path", "kind"} <= one["event"].keys() for one in found.failed)


def test_a_line_without_end_takes_little_memory(tmp_path):
    path = tmp_path / "journal.jsonl"
    with path.open("wb") as file:
        file.truncate(200 << 20)
        file.seek(0, 2)
        file.write(b'\n{"t": 1, "kind": "log"}\n')
    tracemalloc.start()
    assert [record["kind"] for record, _ in read(path)] == ["log"]
    assert len(list(lines(path))) == 2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 << 20
