import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from pipeline.compare import html
from pipeline.compare.read import read_journal
from pipeline.compare.report import Wanted, make

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BLUE, ORANGE = (0x2F, 0x6F, 0xDE), (0xD9, 0x48, 0x0F)  # of the first two runs


@pytest.fixture
def page(write, tmp_path):
    runs = [
        write("</script><b>one", [0.5, 0.7, 0.75], config={"optim.lr": 0.1}),
        write("two", [0.4, 0.8, 0.9], config={"optim.lr": 0.2, "note": "<img src=x onerror=alert(1)>"}),
    ]
    path = tmp_path / "page.html"
    html.write(make([read_journal(run) for run in runs], Wanted(target=0.74)), path)
    return path


@pytest.fixture
def write(write):
    """Names of runs may be hostile, names of directories not."""

    def make_run(name, accuracies, **changes):
        directory = write(name.replace("/", "").replace("<", "").replace(">", ""), accuracies, **changes)
        journal = directory / "journal.jsonl"
        journal.write_text(journal.read_text().replace(f'"name": "{directory.name}"', f'"name": "{name}"'))
        return directory

    return make_run


def browse(tmp_path, *arguments):
    """Let a real browser show a page, without a network."""
    place = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'browser'}",
        "--window-size=1240,1000",
    ]
    alone = ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=2000"]
    command = [CHROMIUM, *place, *alone, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_the_page_is_one_file_that_loads_nothing(page):
    text = page.read_text()
    assert "default-src 'none'" in text
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert text.count("</script>") == 2


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium")
def test_a_browser_shows_tables_and_curves(page, tmp_path):
    shown = browse(tmp_path, "--dump-dom", page.as_uri())
    body = shown[: shown.index("<script")]
    assert body.count("<polyline") == 2
    assert "&lt;/script&gt;&lt;b&gt;one" in body and "<b>" not in body and "<img" not in body
    for text in ("75.00 %", "90.00 %", "optim.lr", "no claim", "◆", "p (Welch)", "g (Hedges)", "median img/s", "20.0s"):
        assert text in body
    assert 'class="target"' in body and "target 74.00 %</text>" in body
    assert body.count("<circle") == 6  # each point of curves that have so few
    assert "rotate(-90)" in body and ">90 %</text>" in body
    assert "–" not in body
    assert "nothing to draw" not in body


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium")
def test_a_browser_draws_what_the_link_asks_for(page, tmp_path):
    shown = browse(tmp_path, "--dump-dom", f"{page.as_uri()}#metric=train/loss&axis=seconds&log=1")
    assert "active seconds</text>" in shown and ">0.1</text>" in shown and ">0.5</text>" not in shown
    assert 'class="target"' not in shown  # it is one of another metric
    picture = tmp_path / "page.png"
    browse(tmp_path, f"--screenshot={picture}", page.as_uri())
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    for colour in (BLUE, ORANGE):
        assert (np.abs(pixels - colour).sum(axis=2) < 30).sum() > 300  # more than the swatches: a curve's length
