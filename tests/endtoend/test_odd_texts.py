"""Runs over texts that tokenizers and terminals find odd, and arguments that are no text."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import transformers
from runs import write_lines, write_run
from tokenizers import Tokenizer, models, pre_tokenizers

from pipeline.open_run import open_run
from stages.reading.words import words_of

KEPT = [
    "good film",
    "a\x00b film",
    "w" * 3000,
    "\u200f\u202b\u05e9\u05dc\u05dd\u202c good",
    "مُحَمَّد كتاب",
    "👩\u200d👩\u200d👧 bad",
    "फिल्म थी",
    "cafe\u0301 x\u0301\u0301",
    "</s> [SEP] <mask>",
    "\x1b[31mred [red]b[/red]",
    "a\u2028b\r\nc",
]
WITHOUT = ["\u200b", "\ufeff", "\x00"]
REJECTED = [("\u3000 \n", "empty text"), ("\ud83d", "not UTF-8"), ("a\udc80", "not UTF-8")]
METHODS: dict[str, Any] = {
    "occlusion": {},
    "udig": {"anchors": 2, "neighbours": 3, "midpoints": 0},
    "dig": {"anchors": 2, "neighbours": 3},
    "lafa": {"limit": 2, "quantile": None},
    "bm25": {},
}


@pytest.fixture(scope="module")
def odd(assay: Any, saved: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose examples and queries are the odd texts, ids from 0 in their order."""
    folder = tmp_path_factory.mktemp("odd")
    texts = [*KEPT, *WITHOUT, *(text for text, _ in REJECTED)]
    rows = [{"id": n, "text": text, "label": n % 2} for n, text in enumerate(texts)]
    source = {"path": write_lines(folder / "rows.jsonl", rows), "id": "id"}
    model = {
        "path": str(saved("bert", "SequenceClassification", num_labels=2)),
        "head": "checkpoint",
        "max_length": 60,
    }
    config = write_run(folder, corpus=source, queries=source, model=model, stages=METHODS)
    said = assay("run", config).stderr
    assert said.count(f"no token that could have a score: {len(WITHOUT)}") == 4
    return folder / "run"


def test_texts_are_kept_as_they_are(odd: Path) -> None:
    opened = open_run(odd)
    texts = opened.sql("SELECT text FROM queries ORDER BY query_id").fetchall()
    assert [text for (text,) in texts] == [*KEPT, *WITHOUT]
    rejected = opened.sql(
        "SELECT reason FROM rejected WHERE role = 'query' ORDER BY row_number"
    ).fetchall()
    assert [reason for (reason,) in rejected] == [reason for _, reason in REJECTED]


@pytest.mark.parametrize("method", [name for name in METHODS if name != "bm25"])
def test_tokens_lie_in_words_of_the_text(odd: Path, method: str) -> None:
    rows = open_run(odd).sql(
        "SELECT query_id, token, char_start, char_end, word_index FROM tokens "
        f"WHERE method = '{method}' ORDER BY query_id, token_index"
    )
    words: dict[tuple[int, int], int] = {}
    for query, token, start, end, word in rows.fetchall():
        text = KEPT[query]
        assert token == text[start:end]
        at = next(n for n, (a, b) in enumerate(words_of(text)) if a <= start < b)
        assert words.setdefault((query, word), at) == at
    assert {query for query, _ in words} == set(range(len(KEPT)))


def test_each_text_finds_itself(odd: Path) -> None:
    rows = open_run(odd).sql(
        "SELECT query_id, arg_max(example_id, score) FROM attributions WHERE score > 0 GROUP BY 1"
    )
    found = dict(rows.fetchall())
    with_letters = [n for n, text in enumerate(KEPT) if any(map(str.isalnum, text))]
    assert found == {n: n for n in with_letters}


@pytest.mark.parametrize("text", [*KEPT[1:9:2], *WITHOUT])
def test_a_text_is_explained_as_the_query_is(
    assay: Any, odd: Path, text: str, tmp_path: Path
) -> None:
    query = [*KEPT, *WITHOUT].index(text)
    named = ("--method", "bm25", "--method", "occlusion")
    known = json.loads(assay("explain", odd, "--query", query, *named, "--json").stdout)
    assert known["query"]["text"] == text
    assert bool(known["tokens"]) == (text in KEPT)
    ways = named if text in KEPT else named[:2]
    again = json.loads(assay("explain", odd, "--text", text, *ways, "--json").stdout)
    assert again["methods"] == known["methods"]
    for one, other in zip(again["tokens"], known["tokens"], strict=True):
        assert [w["word"] for w in one["words"]] == [w["word"] for w in other["words"]]
    assay("explain", odd, "--query", query, "--out", tmp_path / "why.html")


def test_a_text_without_tokens_says_so(complaint: Any, odd: Path) -> None:
    said = complaint("explain", odd, "--text", "\u200b", "--method", "occlusion")
    assert "it has no token that could have a score" in said


@pytest.mark.parametrize("broken", ["\udcff", "half \ud800"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("explain", "RUN", "--text", "X"),
        ("explain", "RUN", "--query", "X"),
        ("explain", "RUN", "--text", "a", "--out", "X.html"),
        ("run", "X"),
        ("run", "c.yaml", "--set", "run=X"),
        ("sql", "RUN", "SELECT 'X'"),
        ("flag", "X"),
        ("evaluate", "RUN", "X"),
    ],
)
def test_bytes_that_are_no_text_are_refused(
    complaint: Any, arguments: tuple[str, ...], broken: str
) -> None:
    said = complaint(*(part.replace("X", broken) for part in arguments), code=2)
    assert "found bytes that are not UTF-8 in an argument, '" in said
    assert ("\\xff" if broken == "\udcff" else "half \\ud800") in said


def test_a_working_folder_that_is_no_text_is_refused(
    complaint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    os.mkdir(folder)
    monkeypatch.chdir(folder)
    assert "in the working folder, '" in complaint("run", "c.yaml", code=2)


def test_python_callers_are_told_the_same(odd: Path) -> None:
    with pytest.raises(Exception, match="--text: found text that is not UTF-8 .*xff"):
        open_run(odd).explain(text="\udcff", methods=["occlusion"])


def test_a_row_of_which_the_tokenizer_leaves_nothing_is_rejected(
    assay: Any, saved: Any, tmp_path: Path
) -> None:
    """By a tokenizer that knows three letters, and adds no token of its own."""
    vocabulary = {token: at for at, token in enumerate(("<s>", "a", "b", "c", "ab"))}
    core = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<s>", pad_token="<s>", model_max_length=64
    )
    model = transformers.AutoModel.from_pretrained(saved("gpt2", "CausalLM"))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    texts = ["ab c", "film", "क", "कb", "\u200b", "a film"]
    rows = [{"text": text, "label": n % 2} for n, text in enumerate(texts)]
    corpus = {"path": write_lines(tmp_path / "rows.jsonl", rows)}
    stages = {"embedding": {}, "bm25": {}}
    spec = {"path": str(tmp_path / "model"), "max_length": 16}
    config = write_run(tmp_path, corpus=corpus, queries=corpus, model=spec, stages=stages)
    assay("run", config)
    opened = open_run(tmp_path / "run")
    found = opened.sql("SELECT row_number, reason FROM rejected WHERE role = 'example' ORDER BY 1")
    assert found.fetchall() == [(n, "text without a token") for n in (1, 2, 4)]
    assert opened.sql("SELECT count(*) FROM embeddings").fetchall() == [(6,)]
