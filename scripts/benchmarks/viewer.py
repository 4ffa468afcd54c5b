"""A run that people look at: the report of many rows in a browser, and the viewer of more.

Rows are words of real sentences in six classes with vectors of eight numbers, some with another
label. Of the report: seconds and memory to write it, bytes, and in headless Chromium the time to
its first paint and from a filter of the table to its rows. Of the viewer: seconds until it answers,
then the time of every kind of page, the median and the longest of some requests one after another,
and the memory of the server.
"""

import argparse
import http.cookiejar
import re
import shutil
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from benchmarks.environment import ROOT
from benchmarks.finished import Clock, run_config

CLASSES, DIM, WRONG = 6, 8, 0.08
BLOCK = 500_000
"""Rows that are made at a time."""
ROWS = "/rows.json?draw=1&start={at}&length=25&"
ORDER = "order[0][name]={}&order[0][dir]=desc"
REQUESTS = {
    "the first page": ROWS.format(at=0),
    "of a class": ROWS.format(at=0) + "is.given_label=" + quote("=class 3"),
    "of a value of a column": ROWS.format(at=0) + "is.part=" + quote("=part 3"),
    "flagged": ROWS.format(at=0) + "flagged=1",
    "by score": ROWS.format(at=0) + ORDER.format("label_score"),
    "by id": ROWS.format(at=0) + ORDER.format("source_id"),
    "half-way down, by p_wrong": ROWS.format(at="{half}") + ORDER.format("p_wrong"),
    "a condition": ROWS.format(at=0) + "where=" + quote("p_wrong > 0.9 AND length(text) < 60"),
    "LIKE over the texts": ROWS.format(at=0) + "where=" + quote("text LIKE '%wonderful%'"),
    "two words of whole texts": ROWS.format(at=0) + "words=film+never",
    "the next row to decide": "/review/next?part=1&flagged=1&decided=undecided",
    "a row": "/example/{row}",
    "what is like it": "/example/{row}/near",
    "a statement": "/sql?q=" + quote("SELECT label_name, count(*) FROM examples GROUP BY ALL"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the case."""
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the viewer")
    parser.add_argument("--report-rows", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=7, help="requests of each kind")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures both."""
    work = Path(arguments.work).resolve() / "viewer"
    found: dict[str, Any] = {"rows": arguments.rows, "report_rows": arguments.report_rows}
    if arguments.report_rows:
        found["report"] = report(finished(work, arguments.report_rows))
    if arguments.rows:
        found["viewer"] = viewer(finished(work, arguments.rows), arguments)
    return found


def finished(work: Path, n_rows: int) -> Path:
    """The folder of a run over so many rows, made once."""
    folder = work / str(n_rows)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "rows.npy").exists():
        write_rows(folder, n_rows)
    corpus = {"path": str(folder / "rows.parquet"), "text": "text", "label": "label", "id": "id"}
    run_config(
        {
            "run": str(folder / "run"),
            "corpus": {**corpus, "features": str(folder / "rows.npy")},
            "stages": {"kernel_regression": {"kernel": ["features"]}, "label_issues": {}},
            "ray": {"engine": "in_process"},
        },
        Clock(),
    )
    return folder / "run"


def write_rows(folder: Path, n_rows: int) -> None:
    """Rows and vectors; a row's text is as many words of real sentences as sentences have."""
    drawn = np.random.default_rng(0)
    sentences = pq.read_table(ROOT / "configs/data/sst2_train.parquet")["text"].to_pylist()
    words = np.array([word for sentence in sentences for word in sentence.split()], dtype=object)
    means = 1.2 * drawn.normal(size=(CLASSES, DIM))
    vectors = np.lib.format.open_memmap(
        folder / "unfinished.npy", "w+", dtype=np.float32, shape=(n_rows, DIM)
    )
    columns = {"id": pa.int64(), "text": pa.string(), "label": pa.string(), "part": pa.string()}
    with pq.ParquetWriter(folder / "rows.parquet", pa.schema(list(columns.items()))) as writer:
        for start in range(0, n_rows, BLOCK):
            ids = np.arange(start, min(start + BLOCK, n_rows))
            lengths = drawn.integers(8, 28, len(ids))
            flat, ends = words[drawn.integers(0, len(words), lengths.sum())], np.cumsum(lengths)
            pieces = zip((ends - lengths).tolist(), ends.tolist(), strict=True)
            texts = [" ".join(flat[begin:end]) for begin, end in pieces]
            labels = drawn.integers(0, CLASSES, len(ids))
            vectors[ids] = means[labels] + drawn.normal(size=(len(ids), DIM))
            shift = (drawn.random(len(ids)) < WRONG) * drawn.integers(1, CLASSES, len(ids))
            given = [f"class {label}" for label in (labels + shift) % CLASSES]
            parts = [f"part {part}" for part in drawn.integers(0, 9, len(ids))]
            rows = {"id": ids, "text": texts, "label": given, "part": parts}
            writer.write_table(pa.table(rows, writer.schema), row_group_size=50_000)
    vectors.flush()
    (folder / "unfinished.npy").rename(folder / "rows.npy")


def report(folder: Path) -> dict[str, Any]:
    """Cost and size of the report of a run, and its times in a browser."""
    page = folder.parent / "report.html"
    command = [str(ROOT / ".venv/bin/assay"), "report", str(folder), "--out", str(page)]
    begun = time.perf_counter()
    timed = subprocess.run(
        ["/usr/bin/time", "-f", "%M", *command], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = {
        "seconds": round(time.perf_counter() - begun, 1),
        "mb_of_memory": int(timed.stderr.split()[-1]) // 1024,
        "mb": round(page.stat().st_size / 1e6, 2),
    }
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is not None and shutil.which("chromedriver") is not None:
        found["in_browser"] = in_browser(page, browser)
    return found


def in_browser(page: Path, binary: str) -> dict[str, Any]:
    """Milliseconds to the first paint of a page, and of filters of its table."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for option in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1400,1000"):
        options.add_argument(f"--{option}")
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    paint = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    # From the event to the frame after the rows have changed; 120 ms of it wait for more typing.
    filtered = """
        const [text, done] = arguments;
        const search = document.querySelector('#rows-filters input[type=search]');
        const info = document.querySelector('.dt-info'), before = info.textContent;
        const begun = performance.now();
        search.value = text;
        search.dispatchEvent(new Event('input'));
        const look = () => info.textContent === before ? requestAnimationFrame(look)
            : requestAnimationFrame(() => done(performance.now() - begun));
        requestAnimationFrame(look);"""
    try:
        driver.set_script_timeout(60)
        paints = []
        for _ in range(3):
            driver.get(page.as_uri())
            end = time.monotonic() + 60
            while driver.execute_script(paint) is None and time.monotonic() < end:
                time.sleep(0.05)
            paints.append(driver.execute_script(paint))
        time.sleep(3)  # the table gets itself ready for searches
        words = ("film", "never", "wonderful acting", "the movie", "dull")
        times = [driver.execute_async_script(filtered, word) for word in words]
    finally:
        driver.quit()
    return {
        "first_paint_ms": [round(t) for t in paints],
        "filter_ms": [round(t) for t in times],
    }


def viewer(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Times of the pages of a run, and the server's memory."""
    begun = time.perf_counter()
    with served(folder) as (process, get):
        found: dict[str, Any] = {"ready_s": round(time.perf_counter() - begun, 1)}
        found["mb_at_start"] = memory(process)
        first = re.search(rb'"id":"(-?\d+)"', get(ROWS.format(at=0))[1])
        row = first[1].decode() if first is not None else ""
        for name, path in REQUESTS.items():
            asked = path.format(half=arguments.rows // 2, row=row)
            times = [1000 * get(asked)[0] for _ in range(arguments.times)]
            found[name] = {
                "median_ms": round(statistics.median(times)),
                "max_ms": round(max(times)),
            }
        found["mb_after"] = memory(process)
        endless = "SELECT sum(a.range * b.range) FROM range(10000000) AS a, range(10000000) AS b"
        found["endless_s"] = round(get(f"/sql?q={quote(endless)}")[0], 1)
        found["overview_s"] = [round(get("/")[0], 1) for _ in range(2)]
        found["mb_after_overview"] = memory(process)
    return found


@contextmanager
def served(folder: Path) -> Iterator[tuple[Any, Callable[[str], tuple[float, bytes]]]]:
    """A viewer, and what gets a page of it: seconds and content."""
    command = [str(ROOT / ".venv/bin/assay"), "view", str(folder), "--by", "part", "--review"]
    process = subprocess.Popen(
        [*command, str(folder.parent / "review.csv")], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    address = None
    while address is None:
        line = process.stderr.readline()
        if not line:
            raise RuntimeError(f"{folder}: the viewer did not start")
        address = re.search(r"http://\S+", line)
    cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
    opener = urllib.request.build_opener(cookies)
    base, _, token = address[0].partition("/?")

    def get(path: str) -> tuple[float, bytes]:
        begun = time.perf_counter()
        try:
            content = opener.open(base + path).read()
        except urllib.error.HTTPError as error:
            content = error.read()
        return time.perf_counter() - begun, content

    try:
        get(f"/rows?{token}")
        yield process, get
    finally:
        process.terminate()
        process.wait()


def memory(process: Any) -> int:
    """The most memory that a process has had, in MB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024
