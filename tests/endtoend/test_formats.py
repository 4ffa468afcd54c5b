"""The formats of fine-tuning corpora: from the file to the tokens that a model is trained on."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml
from runs import write_lines, write_run

from pipeline.config import read_config
from pipeline.corpus import read_corpus
from pipeline.open_run import open_run
from pipeline.plan import Plan, make_plan, stages_in_order
from pipeline.readers import Readers
from stages.model.networks import IGNORED
from stages.model.templates import tokenise_completions
from storage.table import Store

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'moon' %}{{ raise_exception('No moon') }}{% endif %}"
    "{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name }}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
)
MARKED = TEMPLATE.replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}",
)
USER = {"role": "user", "content": "so good"}
ONE = {"role": "assistant", "content": "a film"}
TWO = {"role": "assistant", "content": "not bad"}
TALK = [USER, ONE, USER, TWO]
GPT = [{"from": "human", "value": "so good"}, {"from": "gpt", "value": "a film"}]
CALL = {"from": "function_call", "value": '{"name": "look", "arguments": {}}'}


@pytest.fixture(scope="module")
def talker(saved: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A causal language model with this chat template."""

    def made(template: str) -> Path:
        folder = tmp_path_factory.mktemp("talker") / "model"
        shutil.copytree(saved("gpt2", "CausalLM"), folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        return folder

    return made


@pytest.fixture(scope="module")
def plain(talker: Callable[[str], Path]) -> Path:
    return talker(TEMPLATE)


def plan_of(config: Path, *overrides: str) -> Plan:
    """The plan of a run, of which nothing is written."""
    run = read_config(config, overrides)
    store = Store(run.store_url)
    readers = Readers(stages_in_order(run)[0].values())
    return make_plan(run, read_corpus(run, store, is_dry=True, readers=readers), store)


def planned(folder: Path, model: Path, rows: list[Any], **corpus: Any) -> tuple[Plan, list[str]]:
    """The plan of a run over these rows, and what is predicted of each row that is kept."""
    raw = {"path": write_lines(folder / "rows.jsonl", rows), "task": "completion", **corpus}
    spec = {"path": str(model), "head": "completion"}
    config = write_run(folder, corpus=raw, model=spec, stages={"prediction": {}})
    run = read_config(config)
    store = Store(run.store_url)
    read = read_corpus(run, store, readers=Readers(stages_in_order(run)[0].values()))
    made = make_plan(run, read, store, is_dry=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    said = []
    for shard in read.tables["text"].shards:
        text = store.read_shard("text", shard.key)
        columns = text["text"].to_pylist(), text["text_b"].to_pylist()
        form, length = read.tables["text"].details["format"], made.nodes[-1].stage.model_ref
        tokens = tokenise_completions(tokenizer, *columns, form, length.max_length)
        said += [
            tokenizer.decode([t for t in row if t != IGNORED]) for row in tokens.columns["targets"]
        ]
    return made, said


@pytest.mark.parametrize(
    ("rows", "corpus", "predicted"),
    [
        ([{"messages": TALK}], {}, ["a film</s>not bad</s>"]),
        ([{"messages": TALK}], {"turns": "last"}, ["not bad</s>"]),
        (
            [{"messages": [USER, {**ONE, "weight": 0}, USER, {**TWO, "weight": 1}]}],
            {},
            ["not bad</s>"],
        ),
        ([{"messages": [USER, ONE, USER, {**TWO, "train": False}]}], {}, ["a film</s>"]),
        ([{"prompt": TALK[:3], "completion": [TWO]}], {}, ["not bad</s>"]),
        ([{"prompt": [USER], "completion": [ONE, USER, TWO]}], {}, ["a film</s>not bad</s>"]),
        ([{"conversations": [*GPT, GPT[0], CALL]}], {}, ["a film</s>look</s>"]),
        ([{"instruction": "so?", "input": "", "output": " good"}], {}, [" good</s>"]),
        ([{"prompt": "so", "completion": " good"}], {}, [" good</s>"]),
    ],
)
def test_what_is_learned_of_a_format(
    tmp_path: Path, plain: Path, rows: Any, corpus: Any, predicted: list[str]
) -> None:
    made, found = planned(tmp_path, plain, rows, **corpus)
    assert found == predicted
    assert made.corpus.tables["rejected"].rows == 0
    assert not [note for note in made.notes if "rows are cut" in note]


def test_marks_of_a_template_and_of_messages_work_together(
    tmp_path: Path, talker: Callable[[str], Path]
) -> None:
    """The mark of the template ends before `</s>`, which is hence not learned."""
    model = talker(MARKED)
    _, found = planned(tmp_path, model, [{"messages": TALK}])
    assert found == ["a filmnot bad"]
    _, found = planned(tmp_path, model, [{"messages": TALK}], turns="last")
    assert found == ["not bad"]


def test_what_the_template_refuses_stays_rejected(tmp_path: Path, plain: Path) -> None:
    moon = [{"role": "moon", "content": "x"}, ONE]
    rows = [{"prompt": moon[:1], "completion": [ONE]}, {"prompt": [USER], "completion": [ONE]}]
    made, found = planned(tmp_path, plain, rows)
    assert found == ["a film</s>"]
    assert made.corpus.tables["rejected"].rows == 1


def words(n: int, fill: str = "bad") -> str:
    return " ".join([fill] * n)


@pytest.fixture
def cut(tmp_path: Path, plain: Path) -> Path:
    """A run over 100 rows, most of them short; queries take the task and the turns over."""
    contents = [*(["so"] * 96), words(70), words(80), words(90), words(120)]
    rows = [{"messages": [{**USER, "content": c}, TWO, USER, ONE]} for c in contents]
    source = {"path": write_lines(tmp_path / "rows.jsonl", rows), "task": "completion"}
    queries = {"path": write_lines(tmp_path / "queries.jsonl", rows[-2:])}
    return write_run(
        tmp_path,
        corpus={**source, "turns": "last"},
        queries=queries,
        model={"path": str(plain), "head": "completion"},
        stages={"text_length": {}},
    )


def test_what_max_length_cuts_is_said_before_anything_is_computed(cut: Path) -> None:
    corpus = plan_of(cut).corpus  # its lengths are those of whole rows

    def said(*overrides: str) -> str:
        run = read_config(cut, overrides)
        return " ".join(make_plan(run, corpus, Store(run.store_url)).notes)

    found = said("model.max_length=64")
    assert "rows are cut to max_length: 64 tokens. Of 100 examples 96 stay whole, " in found
    assert "4 lose all of the answer. Of 2 queries 0 stay whole, 2 lose all of the answer." in found
    assert "max_length: 128 would keep 99% of the examples whole" in found
    found = said("model.max_length=64", "model.truncation_mode=keep_end")
    assert "Of 100 examples 96 stay whole, 4 lose a part of the prompt. Of 2 queries" in found
    assert "whole" not in said("model.max_length=160")
    assert not (cut.parent / "run").exists()


def test_max_length_is_chosen_from_the_corpus_and_kept(cut: Path, assay: Any) -> None:
    said = " ".join(assay("run", cut).stderr.split())
    assert "max_length: 128 is chosen: the smallest multiple of 64 that keeps 99%" in said
    folder = cut.parent / "run"
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert resolved["model"]["max_length"] == 128
    assert resolved["stages"]["text_length"]["model"]["max_length"] == 128
    # What is resolved repeats the run.
    again = plan_of(folder / "config.yaml")
    assert [len(node.missing) for node in again.nodes] == [0]
    assert "is chosen" not in " ".join(again.notes)
    # Rows that are appended leave the choice, and so the shards of the earlier rows, as they are.
    lines = (cut.parent / "rows.jsonl").read_text().splitlines(keepends=True)
    (cut.parent / "rows.jsonl").write_text("".join([*lines, *(lines[-1:] * 9)]))
    grown = plan_of(cut)
    assert "max_length: 128 is kept, chosen from this corpus" in " ".join(grown.notes)
    assert "160 would now be chosen" in " ".join(grown.notes)
    assert [(len(node.missing), len(node.tasks)) for node in grown.nodes] == [(1, 5)]


def test_the_positions_of_a_model_bound_the_choice(tmp_path: Path, plain: Path) -> None:
    rows = [{"text": words(n)} for n in (3, 155, 400)]
    made, _ = planned(tmp_path, plain, rows)
    assert made.run.model is not None
    assert made.run.model.max_length == 160
    said = " ".join(made.notes)
    assert "max_length: 160 is chosen: the most tokens that the model reads; 99% of the ex" in said
    assert re.search("whole takes [0-9]+, and the model reads at most 160", said)


def test_reasoning_that_the_template_leaves_out_is_told(tmp_path: Path, plain: Path) -> None:
    thinking = {**ONE, "reasoning_content": "hm"}
    rows = [{"messages": [USER, ONE]}, {"messages": [USER, thinking]}]
    made, found = planned(tmp_path, plain, rows)
    assert found == ["a film</s>"] * 2
    said = " ".join(made.notes)
    assert "leaves out the reasoning (<think>, reasoning_content) of 1 of 2 examples" in said


def test_columns_that_are_guessed_are_said_and_written_as_they_were(
    tmp_path: Path, plain: Path, assay: Any
) -> None:
    unlearned = {"from": "gpt", "value": "not bad", "weight": 0}
    talks = [GPT, [*GPT, GPT[0], unlearned], [GPT[0], unlearned, *GPT]]
    rows = [{"id": n, "conversations": talk, "score": n} for n, talk in enumerate(talks)]
    source = {"path": write_lines(tmp_path / "rows.jsonl", rows), "task": "completion", "id": "id"}
    config = write_run(
        tmp_path,
        corpus=source,
        model={"path": str(plain), "head": "completion"},
        stages={"gradient": {"per": "token", "projection": {"dim": 16}}},
    )
    assert "the column conversations is read as conversations" in " ".join(
        assay("run", config).stderr.split()
    )
    opened = open_run(tmp_path / "run")
    tokenizer = transformers.AutoTokenizer.from_pretrained(plain)
    ids = tokenizer("user\nso good</s>assistant\na film</s>")["input_ids"]
    found = opened.sql("SELECT token_index FROM token_gradients WHERE id = 0 ORDER BY ALL")
    assert tokenizer.decode([ids[at] for (at,) in found.fetchall()]) == "a film</s>"
    # A view for people has the last message that is learned, and what stands before.
    assert opened.sql("SELECT prompt, answer, n_turns FROM completions ORDER BY id").fetchall() == [
        ("so good", "a film", 2),
        ("so good", "a film", 4),
        ("user: so good\nassistant: not bad\nuser: so good", "a film", 4),
    ]
    out = tmp_path / "out.jsonl"
    opened.write_corpus(out)
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows
