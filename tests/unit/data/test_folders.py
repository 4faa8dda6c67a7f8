from pathlib import Path

import pytest

from pipeline.data.folders import whole_folder


def test_the_folder_appears_at_the_end_and_replaces_the_old_one(tmp_path: Path) -> None:
    final = tmp_path / "a" / "final"
    for text in ("one", "two"):
        with whole_folder(final) as new:
            (new / "file").write_text(text)
            assert not final.exists() or (final / "file").read_text() == "one"
        assert (final / "file").read_text() == text
    assert list(final.parent.iterdir()) == [final]


def test_nothing_stays_of_a_folder_that_failed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), whole_folder(tmp_path / "final") as new:
        (new / "file").touch()
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_the_one_that_comes_first_stays_if_another_is_put_there_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "final"
    monkeypatch.setattr(Path, "exists", lambda _: False)  # as seen just before the other process's rename
    with whole_folder(final) as new:
        (new / "late").touch()
        final.mkdir()
        (final / "early").touch()
    assert [path.name for path in final.iterdir()] == ["early"]
    assert list(tmp_path.iterdir()) == [final]
