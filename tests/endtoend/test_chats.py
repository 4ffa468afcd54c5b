"""Runs over conversations, some of which the chat template refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from desks import Desk
from runs import assay, write_lines, write_run

from pipeline.api import plan
from pipeline.open_run import open_run

USER = {"role": "user", "content": "so good"}
ANSWER = {"role": "assistant", "content": "a film"}
SYSTEM = {"role": "system", "content": "be dull"}
IMAGE = [{"type": "image", "url": "x.png"}]
GOOD = [[USER, ANSWER], [USER, ANSWER, USER, {**ANSWER, "content": "\nnot bad"}]]
BAD: list[tuple[Any, str]] = [
    ([SYSTEM, USER, ANSWER], "chat template: Roles must alternate, found system"),
    ([USER, USER, ANSWER], "chat template: Roles must alternate, found user"),
    ([ANSWER, USER], "chat template: Roles must alternate, found assistant"),
    ([USER, {**ANSWER, "content": ""}], "messages of the assistant are empty"),
    (
        [{**USER, "content": IMAGE}, ANSWER],
        "messages with a part that is no text, such as an image",
    ),
]
ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate, found ' + m.role) }}{% endif %}"
    "{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def talker(saved: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal language model whose chat template refuses two messages of one role in turn."""
    folder = tmp_path_factory.mktemp("talker") / "model"
    shutil.copytree(saved("gpt2", "CausalLM"), folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = ALTERNATE
    tokenizer.save_pretrained(folder)
    return folder


def written(folder: Path, talker: Path, cells: list[Any], stages: Any, **more: Any) -> Path:
    """The YAML of a run over these conversations; each row's id is its number."""
    rows = [{"id": n, "messages": cell} for n, cell in enumerate(cells)]
    folder.mkdir(exist_ok=True)
    corpus = {"path": write_lines(folder / "rows.jsonl", rows), "task": "completion", "id": "id"}
    model = {"path": str(talker), "head": "completion", "max_length": 100}
    return write_run(folder, **{"corpus": corpus, "model": model, "stages": stages, **more})


def shards(folder: Path, table: str = "prediction") -> set[str]:
    return {path.stem for path in (folder / "run" / "store" / table).glob("*.parquet")}


def test_a_row_that_the_template_refuses_is_rejected_with_its_words(
    assay: Any, talker: Path, tmp_path: Path
) -> None:
    """The others have the keys, hence the rows, that they have without it."""
    cells = [*GOOD, *(cell for cell, _ in BAD)]
    config = written(tmp_path, talker, cells, {"prediction": {}})
    assert plan(config)["rejected"] == len(BAD)
    said = assay("run", config).stderr
    assert f"{len(BAD)} rows could not be used; see the view `rejected` for the reasons" in said
    opened = open_run(tmp_path / "run")
    found = opened.sql("SELECT source_id, reason FROM rejected ORDER BY row_number").fetchall()
    assert found == [(str(n), reason) for n, (_, reason) in enumerate(BAD, start=len(GOOD))]
    assert opened.sql("SELECT count(*) FROM predictions").fetchall() == [(len(GOOD),)]
    good = tmp_path / "good"
    assay("run", written(good, talker, GOOD, {"prediction": {}}))
    for table in ("text", "label", "prediction"):
        assert shards(good, table) == shards(tmp_path, table)
    assert "0 tasks to do" in assay("run", config).stderr


def test_a_model_whose_template_asks_for_a_system_message_works(
    assay: Any, talker: Path, tmp_path: Path
) -> None:
    """Random conversations, which check a model and find its directions, have one, too."""
    own = tmp_path / "model"
    shutil.copytree(talker, own)
    (own / "chat_template.jinja").write_text(
        "{% if messages[0].role != 'system' %}{{ raise_exception('System first') }}{% endif %}"
        "{% for m in messages %}{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant\n{% endif %}"
    )
    stages = {"gradient": {"projection": {"principal": 2, "dim": 16}}}
    cells = [[SYSTEM, *turns] for turns in GOOD]
    assay("run", written(tmp_path, own, [*cells, GOOD[0]], stages))
    opened = open_run(tmp_path / "run")
    assert opened.sql("SELECT count(*) FROM gradients").fetchall() == [(len(GOOD),)]
    reasons = opened.sql("SELECT reason FROM rejected").fetchall()
    assert reasons == [("chat template: System first",)]


def test_a_template_that_changed_reads_the_corpus_again(
    assay: Any, talker: Path, tmp_path: Path
) -> None:
    own = tmp_path / "model"
    shutil.copytree(talker, own)
    config = written(tmp_path, own, [*GOOD, BAD[0][0]], {"prediction": {}})
    assay("run", config)
    assert open_run(tmp_path / "run").sql("SELECT count(*) FROM rejected").fetchall() == [(1,)]
    (own / "chat_template.jinja").write_text(ALTERNATE.replace("!=", "== 3 and"))
    assay("run", config)
    assert open_run(tmp_path / "run").sql("SELECT count(*) FROM rejected").fetchall() == [(0,)]


def test_only_models_that_lay_out_conversations_refuse_any(
    assay: Any, talker: Path, tmp_path: Path
) -> None:
    """Embeddings are of the plain text; where two models lay it out, both must."""
    cells = [*GOOD, BAD[0][0]]
    config = written(tmp_path / "plain", talker, cells, {"embedding": {}})
    assay("run", config)
    assert plan(config)["rejected"] == 0
    other = tmp_path / "other"
    shutil.copytree(talker, other)
    (other / "chat_template.jinja").write_text(
        ALTERNATE.replace("m.role == 'user'", "m.role != 'assistant'").replace("must", "should")
    )
    both = {
        "one": {"stage": "prediction"},
        "two": {
            "stage": "prediction",
            "model": {"path": str(other), "head": "completion", "max_length": 100},
        },
    }
    cells = [*GOOD, [USER, USER, ANSWER], [SYSTEM, ANSWER]]
    assay("run", written(tmp_path / "both", talker, cells, both))
    found = open_run(tmp_path / "both" / "run").sql(
        "SELECT row_number, reason FROM rejected ORDER BY row_number"
    )
    assert found.fetchall() == [
        (2, f"{talker}: chat template: Roles must alternate, found user"),
        (3, f"{talker}: chat template: Roles must alternate, found system"),
    ]


def test_a_corpus_of_refused_rows_alone_says_why(
    complaint: Any, talker: Path, tmp_path: Path
) -> None:
    config = written(tmp_path, talker, [BAD[0][0]] * 3, {"prediction": {}})
    said = complaint("run", config)
    assert "no usable row among 3 (3 chat template: Roles must alternate, found system)" in said
    assert complaint("plan", config) in said


def test_conversations_have_no_place_in_a_prompt(
    complaint: Any, saved: Any, talker: Path, tmp_path: Path
) -> None:
    model = {
        "path": str(saved("bert", "MaskedLM")),
        "head": "label_words",
        "prompt": {"template": "{text} it was {mask}", "label_words": ["good", "bad"]},
    }
    config = written(tmp_path, talker, GOOD, {"prediction": {}}, model=model)
    assert "head: label_words with a corpus of conversations" in complaint("plan", config)


def test_a_new_conversation_is_checked_as_a_row_is(
    assay: Any, complaint: Any, talker: Path, tmp_path: Path
) -> None:
    queries = {"path": write_lines(tmp_path / "asked.jsonl", [{"messages": GOOD[0]}])}
    stages = {"tracin": {}}
    config = written(tmp_path, talker, GOOD, stages, queries={**queries, "task": "completion"})
    assay("run", config)
    run = tmp_path / "run"
    parts = [{**USER, "content": [{"type": "text", "text": "so good"}]}, ANSWER]
    ways = [("--text", json.dumps(parts)), ("--query", "0")]
    told = [json.loads(assay("explain", run, *way, "--json").stdout)["methods"] for way in ways]
    assert told[0] == told[1] != []
    for cell, reason in BAD[:3]:
        said = complaint("explain", run, "--text", json.dumps(cell), "--method", "tracin")
        assert reason in said
    assert "such as an image" in complaint("explain", run, "--text", json.dumps(BAD[4][0]))


def test_the_viewer_shows_what_is_alike_where_nothing_explains(
    tmp_path: Path, talker: Path
) -> None:
    """Prompts are listed by their ends, queries are shown whole beside the nearest rows."""
    long = {**USER, "content": "so bad " * 30 + "why <b>not</b>"}
    cells = [[long, ANSWER], *GOOD]
    queries = [{"id": 0, "messages": [long, {**ANSWER, "content": "a bad film"}]}]
    asked = {"path": write_lines(tmp_path / "queries.jsonl", queries), "id": "id"}
    folder = written(tmp_path, talker, cells, {"position_weighted": {}}, queries=asked)
    assay("run", folder)
    person = Desk(tmp_path / "run", tmp_path / "review.csv").person()
    rows = person.get("/rows.json?draw=1&start=0&length=25").json["data"]
    assert [row["example_id"] for row in rows] == [0, 1, 2]
    assert "…" in str(rows[0])
    assert "why <b>not</b>" in str(rows[0])
    assert "…" not in str(rows[1])
    page = person.get("/query/0").text
    assert "found no pairwise method" in page
    assert page.count("why &lt;b&gt;not&lt;/b&gt;") == 2
    assert "a bad film" in page
    assert '<a href="/example/0">' in page
    assert '<a href="/example/1">' in person.get("/example/0/near").text
