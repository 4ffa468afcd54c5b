"""Languages of texts that people know the language of."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from runs import DATA, write_lines, write_run

from pipeline.open_run import open_run
from stages.predictions.language import Language

KNOWN = {
    "de": "Der Zug nach Hamburg fährt heute leider erst eine halbe Stunde später ab.",
    "fr": "Nous avons passé toute la journée au bord de la rivière avec nos enfants.",
    "es": "Mañana por la tarde vamos a visitar a mi abuela en el pueblo de al lado.",
    "ru": "Сегодня утром на улице было очень холодно, поэтому мы остались дома.",
    "zh": "昨天晚上我们一起去看了一部电影,大家都觉得故事很有意思,演员也很好,下次还想再去看。",
    "en": "The neighbours planted a row of apple trees along the old garden wall.",
}


def texts(rows: list[str | None], pairs: list[str | None] | None = None) -> pa.Table:
    """The table of these texts."""
    n = len(rows)
    return pa.table(
        {
            "id": pa.array(range(n)),
            "role": ["example"] * n,
            "text": pa.array(rows, pa.string()),
            "text_b": pa.array(pairs or [None] * n, pa.string()),
        }
    )


def test_languages_are_told(memory: Any) -> None:
    rows = memory({"text": texts(list(KNOWN.values()))}).run(Language()).to_pylist()
    assert [row["language"] for row in rows] == list(KNOWN)
    assert all(row["p_language"] > 0.9 for row in rows)
    assert [row["n_characters"] for row in rows] == list(map(len, KNOWN.values()))


def test_what_has_no_letters_has_no_language(memory: Any) -> None:
    rows = memory({"text": texts(["12 + 3 = 15", "", "...", "\u202e 7"])}).run(Language())
    assert rows["language"].to_pylist() == [None] * 4
    assert rows["p_language"].to_pylist() == [0.0] * 4


def test_all_of_a_row_counts_and_no_more_than_its_beginning(memory: Any) -> None:
    alone = memory({"text": texts([KNOWN["de"]])}).run(Language()).to_pylist()
    talk = [{"role": "user", "content": KNOWN["de"][:30]}]
    talk += [{"role": "assistant", "content": KNOWN["de"][30:]}]
    table = texts([json.dumps(talk)])
    said = memory({"text": table}, {"text": {"format": "messages"}}).run(Language()).to_pylist()
    assert said[0]["language"] == "de"
    assert said[0]["n_characters"] == alone[0]["n_characters"] + 1
    pair = memory({"text": texts(["x", "x"], [KNOWN["fr"], None])}).run(Language()).to_pylist()
    assert [row["language"] == "fr" for row in pair] == [True, False]
    long = memory({"text": texts([KNOWN["en"] * 10_000 + KNOWN["ru"]])}).run(Language())
    assert long["n_characters"].to_pylist() == [2000]


def test_rows_in_another_language_than_the_rest_are_issues(tmp_path: Path, assay: Any) -> None:
    english = pq.read_table(DATA / "sst2_train.parquet")["text"].to_pylist()[:300]
    foreign = [text for language, text in KNOWN.items() if language != "en"]
    rows = [{"id": f"{n}", "text": text, "label": n % 2} for n, text in enumerate(english)]
    rows += [{"id": text, "text": text, "label": 0} for text in [*foreign, "Ja, gut."]]
    corpus = {"path": write_lines(tmp_path / "rows.jsonl", rows), "id": "id"}
    assay("run", write_run(tmp_path, corpus=corpus, stages={"language": {}}))
    run = open_run(tmp_path / "run")
    found = run.sql(
        "SELECT e.source_id FROM issues JOIN examples AS e USING (example_id) "
        "WHERE issue = 'another language'"
    ).fetchall()
    assert {row for (row,) in found} == set(foreign)
    sure = run.sql("SELECT language FROM languages WHERE is_sure GROUP BY ALL").fetchall()
    assert {language for (language,) in sure} == set(KNOWN)
