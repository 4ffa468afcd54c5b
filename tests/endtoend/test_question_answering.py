"""A run over questions about texts, in the form of the hub's data sets, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from runs import write_lines, write_run
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from pipeline import api, open_run

WORDS = "the old mill was built in 1851 by two brothers from bergen who when it".split()
QUESTIONS = [
    ("The old mill was built in 1851 by two brothers.", "When was the mill built?", "1851"),
    ("The old mill was built by two brothers from Bergen.", "Who built it?", "two brothers"),
    ("It was old in 1851.", "When was it old?", "1851"),
]


def write_model(folder: Path) -> str:
    """A question-answering model of one layer that has learned nothing."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", *WORDS]
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(names),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    transformers.BertForQuestionAnswering(config).save_pretrained(folder)
    return str(folder)


def rows(with_label: bool = False) -> list[dict[str, Any]]:
    found = []
    for at, (context, question, answer) in enumerate(QUESTIONS):
        answers = {"text": [answer], "answer_start": [context.find(answer)]}
        own = {"id": f"q{at}", "context": context, "question": question, "answers": answers}
        found.append({**own, "label": at % 2} if with_label else own)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a file of questions with one row that has none."""
    folder = tmp_path_factory.mktemp("questions")
    write_model(folder / "model")
    bad = {**rows()[0], "id": "q9", "question": " "}
    write_lines(folder / "rows.jsonl", [*rows(with_label=True), bad])
    return folder


def config(folder: Path, **changes: Any) -> Path:
    source = {"path": str(folder / "rows.jsonl"), "id": "id"}
    raw = {
        "model": {"path": str(folder / "model"), "head": "span", "max_length": 64},
        "corpus": {**source, "task": "question_answering"},
        "queries": source,
    }
    return write_run(folder, **{**raw, **changes})


@pytest.fixture(scope="module")
def done(folder: Path, assay: Any) -> Path:
    stages = {"answer_span": {}, "ig": {"steps": 6}, "udig": {"anchors": 2}, "embedding": {}}
    stages["lafa"] = {"quantile": None}
    ran = assay("run", config(folder, stages=stages))
    assert "texts with questions" in ran.output
    return folder / "run"


def test_answers_stand_in_the_text(done: Path) -> None:
    run = open_run(done)
    found = run.sql(
        "SELECT source_id, question, answer, substring(text, char_start + 1, char_end - char_start)"
        ", probability, answers.text[1] FROM answers JOIN queries ON id = query_id "
        "WHERE role = 'query' ORDER BY source_id"
    ).fetchall()
    assert [row[0] for row in found] == ["q0", "q1", "q2"]
    for row, (_, question, gold) in zip(found, QUESTIONS, strict=True):
        assert row[1] == question
        assert row[2] == row[3] != ""
        assert 0 < row[4] <= 1
        assert row[5] == gold
    assert run.sql("SELECT reason, count(*) FROM rejected GROUP BY ALL").fetchall() == [
        ("empty second text", 2)
    ]
    # A column called label is carried along as any other.
    assert run.sql("SELECT label, max(source_label) FROM examples GROUP BY ALL").fetchall() == [
        (None, 1)
    ]


def test_words_point_to_both_places(done: Path, assay: Any) -> None:
    run = open_run(done)
    outputs = run.sql(
        "SELECT method, output_name, count(*), max(delta_percent) < 5 FROM explained "
        "WHERE method = 'ig' GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    assert [row[:3] for row in outputs] == [("ig", "end", 3), ("ig", "start", 3)]
    columns = run.sql("SELECT DISTINCT text_column FROM tokens ORDER BY ALL").fetchall()
    assert columns == [("text",), ("text_b",)]
    told = json.loads(assay("explain", done, "--query", "q1", "--json").stdout)
    assert {(one["method"], one["output_name"]) for one in told["tokens"]} == {
        (method, name) for method in ("ig", "udig", "lafa") for name in ("start", "end")
    }
    (answer,) = told["answers"]
    query = told["query"]
    assert answer["answer"] == query["text"][answer["char_start"] : answer["char_end"]]
    assert (
        f"answer_span answers: {answer['answer']}, probability"
        in assay("explain", done, "--query", "q1").stdout
    )
    new = assay(
        *("explain", done, "--text", "The mill was old.", "--text-b", "Who was old?"),
        *("--method", "ig", "--json"),
    )
    assert json.loads(new.stdout)["answers"][0]["answer"] in "The mill was old."
    words = [w["word"] for w in json.loads(new.stdout)["tokens"][0]["words"]]
    assert words == ["Who", "was", "old", "?", "The", "mill", "was", "old", "."]


def test_faithfulness_of_answers(done: Path, assay: Any) -> None:
    judged = assay("evaluate", done, "faithfulness", "--set", 'methods=["ig", "udig"]', "--json")
    found = json.loads(judged.stdout)
    assert {row["outputs"] for row in found["rows"]} == {6}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"stages": {"prediction": {}}}, "expected classification or regression or completion"),
        ({"stages": {"gradient": {}}}, "found a corpus with task: question_answering"),
        ({"stages": {"freeshap": {}}}, "stages.freeshap: found a corpus with task: question_answ"),
        (
            {"stages": {"answer_span": {"model": {"path": "m", "head": "probe"}}}},
            "expected head: span, which",
        ),
    ],
)
def test_what_answers_cannot_do_is_refused(
    folder: Path, changes: dict[str, Any], told: str, complaint: Any
) -> None:
    assert told in complaint("plan", config(folder, **changes))


def test_a_span_needs_questions(folder: Path, complaint: Any) -> None:
    source = {"path": str(folder / "rows.jsonl"), "text": "context", "label": "label"}
    changes = {"corpus": source, "queries": source, "stages": {"ig": {}}}
    assert "expected task: question_answering" in complaint("plan", config(folder, **changes))
    source = {"path": str(folder / "rows.jsonl"), "task": "question_answering", "label": "id"}
    assert "label: found id with task: question_answering" in complaint(
        "plan", config(folder, corpus=source, queries=source, stages={"ig": {}})
    )


def test_a_report_marks_the_answers_in_their_texts(done: Path, tmp_path: Path) -> None:
    page = api.report(done, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "3 questions about texts" in page
    assert page.count("<mark>") == 6
    assert "ig: words that" in page
