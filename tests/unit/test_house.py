"""The guards of the style: names, places, and what documentation promises."""

import ast
import dataclasses
import importlib.metadata
import re
from pathlib import Path

import duckdb
import pytest
import yaml

import stages.tables as stages_tables
from pipeline.cli import main
from pipeline.config import metric_names, parse_metric, parse_stage, read_config, stage_names
from stages.capabilities import AnswersQueries, Merges, Samples
from stages.catalogue import head_names, load_head
from stages.metrics.metric import Metric
from stages.model.heads.head import Head
from stages.model.spec import ModelSpec, RunsModel
from stages.stage import TASKS, Stage
from storage.schema import TableSpec
from storage.summed import VALUE

ROOT = Path(__file__).parents[2]
ROOMS = ("pipeline", "stages", "storage")
BENCHMARKS = ROOT / "scripts" / "benchmarks"
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part == "runs" for part in path.relative_to(ROOT).parts)
)
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
STATEMENTS = sorted((ROOT / "storage" / "sql").rglob("*.sql"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_belongs_to_this_project_alone(room: str) -> None:
    owners = set(importlib.metadata.packages_distributions().get(room, ["assay"]))
    assert owners == {"assay"}


def test_tests_are_no_package() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_no_drawer_for_odds_and_ends() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "base", "misc", "core"}
    assert [path for path in SOURCES if path.stem in drawers or path.parent.name in drawers] == []


def test_a_file_can_be_read_in_one_sitting() -> None:
    # 300 lines must justify themselves in review; 400 are not justified.
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert [path for path, count in lines.items() if count > 400] == []


@pytest.mark.parametrize("stage", stage_names())
def test_stages_keep_the_contract(stage: str) -> None:
    made = parse_stage(stage, {}, ModelSpec("owner/name"), "test")
    assert isinstance(made, Stage)
    assert made.split in ("shard", "query", "round", "whole")
    assert isinstance(made.version, int)
    assert made.writes
    assert all(isinstance(spec, TableSpec) for spec in made.writes)
    assert all(isinstance(name, str) for name in made.reads)
    assert made.__dataclass_params__.frozen
    fields = {field.name for field in dataclasses.fields(made)}
    assert (made.split == "round") == bool({"rounds", "folds", "draws"} & fields)
    assert made.split == "shard" or not isinstance(made, Merges)
    assert made.split == "round" or not isinstance(made, Samples)
    assert made.split == "whole" or not isinstance(made, AnswersQueries)
    assert ("model" in fields and stage != "label_issues") == isinstance(made, RunsModel)
    assert made.seed is None or isinstance(made.seed, int)


@pytest.mark.parametrize("head", head_names())
def test_kinds_of_models_keep_the_contract(head: str) -> None:
    kind = load_head(head)
    assert issubclass(kind, Head)
    assert not kind.__abstractmethods__
    assert set(kind.tasks) <= set(TASKS)
    assert set(kind.corpora) <= set(TASKS)
    assert f"`{head}`" in read("configs/README.md")


@pytest.mark.parametrize("stage", stage_names())
def test_every_stage_has_a_line_in_the_table_of_its_folder(stage: str) -> None:
    (path,) = (p for p in (ROOT / "stages").glob(f"*/{stage}.py"))
    page = read("stages/README.md")
    (own,) = (part for part in page.split("\n## ") if part.startswith(f"{path.parent.name}/"))
    assert f"\n| `{stage}` |" in own


@pytest.mark.parametrize("metric", metric_names())
def test_metrics_keep_the_contract(metric: str) -> None:
    made = parse_metric(metric)
    assert isinstance(made, Metric)
    assert made.__dataclass_params__.frozen
    assert all(isinstance(name, str) for name in made.reads)


@pytest.mark.parametrize("metric", metric_names())
def test_every_metric_has_a_line_in_the_table(metric: str) -> None:
    assert f"\n| `{metric}` |" in read("stages/metrics/README.md")


@pytest.mark.parametrize("page", ["README.md", "pipeline/README.md"])
@pytest.mark.parametrize("command", sorted(main.commands))
def test_the_readmes_name_every_command(command: str, page: str) -> None:
    assert f"`assay {command} " in read(page)


def test_every_view_has_a_line() -> None:
    page = read("storage/README.md")
    views = {path.name.split(".")[0] for path in (ROOT / "storage" / "sql").glob("*.sql")}
    assert [view for view in sorted(views) if not re.search(rf"^\|.*`{view}`", page, re.M)] == []


def test_every_config_has_a_line() -> None:
    page = read("configs/README.md")
    names = [path.name for path in sorted((ROOT / "configs").glob("*.yaml"))]
    assert [name for name in names if f"\n| [{name}]({name}) |" not in page] == []


def test_the_readme_is_read_in_five_minutes() -> None:
    assert (ROOT / "README.md").stat().st_size <= 10_240


def test_the_readme_shows_a_file_that_runs() -> None:
    assert f"```yaml\n{read('configs/three_jobs.yaml')}```" in read("README.md")


def test_links_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        links = re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", text)
        for target in (one or other for one, other in links):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, heading = target.partition("#")
            file = page.parent / name if name else page
            if not file.exists() or (heading and heading not in headings(file)):
                broken.append((page, target))
    assert broken == []


def test_yaml_in_pages_can_be_read() -> None:
    for page in PAGES:
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            # "One of these" shows the same key more than once, of which the last one counts.
            assert isinstance(yaml.safe_load(block), dict), (page, block)


def test_every_benchmark_has_a_page_and_a_line() -> None:
    index = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    missing = [
        case
        for case in bench_cases()
        if not (BENCHMARKS / f"{case}.md").exists() or f"| [{case}]({case}.md) |" not in index
    ]
    assert missing == []


def test_every_page_of_results_is_of_a_benchmark() -> None:
    pages = {path.stem for path in BENCHMARKS.glob("*.md")} - {"README"}
    assert pages == set(bench_cases())


def test_inputs_that_benchmarks_make_are_compared_with_the_protocol() -> None:
    # mypy compares a class that names the protocol or a class of it; others fall behind unseen.
    made = {"table", "by_shard", "vectors"}
    unseen = [
        (path.name, node.name)
        for path in BENCHMARKS.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and made & {of.name for of in node.body if isinstance(of, ast.FunctionDef)}
        and not {"Inputs", "MemoryInputs"} & {ast.unparse(base) for base in node.bases}
    ]
    assert unseen == []


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_configs_parse(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert read_config(path).stages


def test_views_are_one_statement_each() -> None:
    for path in STATEMENTS:
        statements = duckdb.extract_statements(path.read_text(encoding="utf-8"))
        kind = "CREATE" if path.parent.name == "macros" else "SELECT"
        assert [statement.type.name for statement in statements] == [kind], path


def test_views_read_tables_that_are_written() -> None:
    from pipeline.corpus import CORPUS

    model = ModelSpec("owner/name")
    stages = [parse_stage(name, {}, model, "test") for name in stage_names()]
    written = {spec.name for stage in stages for spec in stage.writes} | set(CORPUS)
    written |= {spec.name for spec in vars(stages_tables).values() if isinstance(spec, TableSpec)}
    written.add(VALUE.name)
    for path in STATEMENTS:
        read = set(re.findall(r"\btables\.(\w+)", path.read_text(encoding="utf-8")))
        assert path.parent.name == "macros" or read <= written, path


# A person who follows a message loses the file that it names. So each has a test in which the fault
# that it means raises it, and what it says, done to the letter, heals.
ADVICE = re.compile(
    r"\b[Dd]elete (it|the|that|this|one|both|all)\b|\b[Rr]emove (it or f|.*\bfile\b)"
)
TESTED_ADVICE = {
    "Remove it or fill it": "tests/endtoend/test_advice.py::test_an_empty_file_among_the_inputs",
}


def test_advice_to_delete_a_file_is_followed_in_a_test() -> None:
    raised = [(path, said) for path in SOURCES for said in raised_texts(path)]
    for path, said in raised:
        if not ADVICE.search(said):
            continue
        tests = [test for text, test in TESTED_ADVICE.items() if text in said]
        assert tests, f"{path}: {said}"
        file, _, name = tests[0].partition("::")
        assert f"\ndef {name}(" in read(file)


def test_ray_is_imported_by_one_module() -> None:
    importing = re.compile(r"^\s*(import|from) ray\b", re.MULTILINE)
    found = [p.name for p in SOURCES if importing.search(p.read_text(encoding="utf-8"))]
    assert found == ["engine.py"]


def test_datasets_is_imported_by_three_modules() -> None:
    importing = re.compile(r"^\s*(import|from) datasets\b", re.MULTILINE)
    found = [p.name for p in SOURCES if importing.search(p.read_text(encoding="utf-8"))]
    assert sorted(found) == ["hub_folder.py", "hub_sets.py", "huggingface.py"]


def raised_texts(path: Path) -> list[str]:
    """The texts of the calls in a module, such as errors, with `{}` for what is filled in."""
    found = []
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call):
            continue
        for argument in call.args:
            parts = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
            texts = [part.value if isinstance(part, ast.Constant) else "{}" for part in parts]
            found.append("".join(map(str, texts)))
    return found


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def headings(page: Path) -> set[str]:
    """The anchors of a page, as they are made of its headings."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


def bench_cases() -> tuple[str, ...]:
    tree = ast.parse(read("scripts/bench.py"))
    (cases,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "CASES"
    )
    return tuple(ast.literal_eval(cases))
