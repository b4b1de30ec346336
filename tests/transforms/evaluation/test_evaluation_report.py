"""The page, as text and in a real browser."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deadlines import WAIT_SECONDS

from transforms.accounting import Counts
from transforms.evaluation import report
from transforms.evaluation.charts import Axis
from transforms.evaluation.compare import Pairs
from transforms.evaluation.evaluate import Totals
from transforms.evaluation.fingerprint import Fingerprint
from transforms.evaluation.result import Evaluation, Subject, evaluation
from transforms.evaluation.settle import Wanted, settle

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def evaluated(classes: int) -> Evaluation:
    """All that a report can show: long names, slices, drift, dead letters, a comparison."""
    random = np.random.default_rng(0)
    rows = 600
    names = np.array([f"<class> {index}" for index in range(classes)])
    probabilities = random.dirichlet(np.ones(classes), rows)
    truth = random.integers(0, classes, rows)
    table = pa.table(
        {
            "label": names[truth],
            "predicted_class": names[probabilities.argmax(axis=1)],
            "note": ["a rather long text with <b>markup</b> & an ampersand, again and again"] * rows,
            "country": np.array(["NL", "a country with a very long name indeed"])[random.integers(0, 2, rows)],
            **{f"probability_{name}": probabilities[:, index] for index, name in enumerate(names)},
        }
    )
    fingerprint = Fingerprint.of(pa.table({"country": ["NL", "BE"]}))
    batch = table.combine_chunks().to_batches()[0]
    plan = settle(table.schema, batch, Wanted("label", ("country",), fingerprint=fingerprint), "x")
    totals = Totals(plan)
    totals.add(batch)
    counts = Counts(rows_read=rows + 3, rows_dead=3, dead_by_error={"encode/NullValue": 3})
    subject = Subject("/a/long/path/" * 12, {"name": "m", "version": "1"}, "/the/other/run/" * 8)
    return evaluation(totals, counts, subject, totals, Pairs(only_first=4, both=9, rows=13))


def test_nothing_is_loaded_and_nothing_is_markup() -> None:
    page = report.html(evaluated(4))
    assert not re.search(r"<script|<link|<img|\bsrc=|url\(|@import|https?://", page)
    assert "default-src 'none'" in page
    assert "<b>markup</b>" not in page
    assert "<class>" not in page
    assert "&lt;class&gt; 3" in page
    for title in ("Confusion matrix", "ROC", "Precision and recall", "Calibration", "Cumulative lift", "By slice",
                  "highest loss", "Data drift", "Dead letters by reason", "Compared with"):  # fmt: skip
        assert title in page


def test_many_classes_stay_small() -> None:
    page = report.html(evaluated(200))
    assert "Most frequent confusions" in page
    assert len(page) < 500_000


def test_a_report_without_anything_special() -> None:
    bare = evaluated(2)
    metrics = {key: value for key, value in bare.metrics.items() if key != "compare"}
    page = report.html(
        replace(bare, metrics=metrics | {"slices": {}, "drift": {}, "dead_by_error": {}}, charts={}, worst=[])
    )
    assert "Compared with" not in page
    assert "By slice" not in page


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-13, 12, [-10, -5, 0, 5, 10])]
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert Axis("x", low, high).ticks() == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(tmp_path: Path, width: int) -> None:
    """No text or chart goes beyond the page, and nothing is asked of a network."""
    page = report.html(evaluated(6))
    measure = (
        "const d=f.contentDocument,e=d.documentElement,w=e.clientWidth;"
        "const out=[...d.querySelectorAll('main *')].filter(n=>!n.closest('.scroll')&&n.getBoundingClientRect().right>w+1);"
        "f.contentWindow.scrollTo(1e4,0);document.title=[f.contentWindow.scrollX,w,out.length,f.contentWindow.performance.getEntriesByType('resource').length,"
        "d.querySelectorAll('svg').length].join(' ')"
    )
    frame = f'<iframe id=f style="border:0;width:{width}px;height:900px" srcdoc="{html.escape(page)}"></iframe>'
    (tmp_path / "frame.html").write_text(f"<title></title>{frame}<script>f.onload=()=>{{{measure}}}</script>")
    assert BROWSER is not None
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
    ]
    done = subprocess.run(
        [BROWSER, *flags, f"--window-size={width + 40},1000", f"file://{tmp_path / 'frame.html'}"],
        capture_output=True, text=True, check=False, timeout=WAIT_SECONDS,
    )  # fmt: skip
    title = re.search(r"<title>([\d ]+)</title>", done.stdout)
    assert title, done.stderr[-1000:]
    scrolled, client, beyond, resources, pictures = map(int, title.group(1).split())
    assert client == width
    assert (scrolled, beyond, resources) == (0, 0, 0)
    assert pictures >= 5
