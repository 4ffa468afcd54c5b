"""Checks of a plan before anything is computed: whether stages fit the tables they read."""

import dataclasses
from collections.abc import Mapping

from pipeline.config import stage_name
from pipeline.corpus import SOMETIMES, Corpus
from pipeline.errors import ConfigFileError
from pipeline.node import Node
from pipeline.settings import Run
from pipeline.table_kinds import check_kinds, columns_of
from stages.catalogue import load
from stages.corpus.columns import OWN
from stages.corpus.yaml_value import in_yaml
from stages.model.class_names import (
    CorpusClasses,
    has_saved_head,
    join,
    ordered_words,
    output_names,
)
from stages.model.hub import is_encoder_decoder
from stages.model.spec import ModelSpec
from stages.stage import ConfigError, Stage
from storage.names import near


def check_model(read: str, reader: str, root: str, run: Run, name: str) -> None:
    """Raises where the stage `read`, added for `reader`, needs a model and the run has none.

    `root` is the stage of the YAML that `reader` is, or was added for.
    """
    model_default = {f.name: f.default for f in dataclasses.fields(load(read))}.get("model")
    if run.model is None and run.corpus.features and model_default is dataclasses.MISSING:
        who = "it" if root == reader else f"{reader}, which it adds,"
        stage = run.stages[reader] if reader in run.stages else load(reader)
        takes = {f.name for f in dataclasses.fields(stage)} & {"kernel", "embedding", "features"}
        fields = {"kernel": "{kernel: [features]}"}
        hints = [fields.get(field, f"{{{field}: features}}") for field in sorted(takes)]
        raise ConfigFileError(
            f"{name}: stages.{root}: found that {who} reads {read!r}, which needs a model, "
            "expected the features of the corpus where there is no model. "
            + (
                f"Say `{in_yaml(reader)}: {hints[-1]}` under `stages:`, or"
                if hints
                else "Leave it out, or"
            )
            + " add `model:`."
        )


def with_class_order(
    stages: Mapping[str, Stage], corpus: Corpus
) -> tuple[dict[str, Stage], list[str]]:
    """The stages, with models whose outputs are in the order of the corpus's classes, and notes.

    Raises:
        ConfigFileError: the classes of a saved head or of a prompt are not those of the corpus.
    """
    details = corpus.tables["label"].details
    has_order = bool(details.get("is_declared")) or details.get("label_kind") == "classlabel"
    classes = CorpusClasses(corpus.classes, has_order)
    known: dict[ModelSpec, tuple[ModelSpec, str | None]] = {}
    ordered, notes = dict(stages), dict[str, None]()
    for instance, stage in stages.items():
        fields: dict[str, ModelSpec] = {}
        for f in dataclasses.fields(stage):
            model = getattr(stage, f.name)
            if not isinstance(model, ModelSpec):
                continue
            if f"{f.name}.head" in stage.outside_key:
                # The stage runs the trunk alone.
                fields[f.name] = dataclasses.replace(model, class_order=None)
                continue
            try:
                if model not in known:
                    known[model] = _in_class_order(model, corpus, classes)
            except ConfigError as error:
                raise ConfigFileError(f"stages.{instance}: {error}") from error
            fields[f.name], note = known[model]
            notes |= {note: None} if note else {}
        if any(getattr(stage, name) != model for name, model in fields.items()):
            ordered[instance] = dataclasses.replace(stage, **fields)
    return ordered, list(notes)


def _in_class_order(
    model: ModelSpec, corpus: Corpus, classes: CorpusClasses
) -> tuple[ModelSpec, str | None]:
    """The model with its outputs in the order of the classes, and a note for the user."""
    model = dataclasses.replace(model, class_order=None)
    if model.head == "checkpoint" and corpus.task == "regression":
        outputs = output_names(model)
        if len(outputs) != 1:
            raise ConfigError(
                f"model: found a saved head with {len(outputs)} outputs for a corpus with task: "
                "regression, expected one output. Name a regressor, set head: probe, or correct "
                "corpus.task."
            )
    if corpus.task != "classification":
        return model, None
    if model.prompt is not None:
        words, note = ordered_words(model.prompt.label_words, classes)
        return dataclasses.replace(
            model, prompt=dataclasses.replace(model.prompt, label_words=words)
        ), note
    if model.head != "checkpoint":
        return model, None
    try:
        joined = join(model, output_names(model), classes)
    except ConfigError as error:
        if has_saved_head(model):
            raise
        raise ConfigError(
            f"model: found no weights for a classifier in {model.path}, expected them in the "
            "checkpoint, with one output for each class. Set head: probe, or name a model that was "
            "fine-tuned for classification."
        ) from error
    is_moved = joined.order != tuple(range(len(joined.order)))
    order = joined.order if is_moved else None
    return dataclasses.replace(model, class_order=order), joined.notice


def check_tables(
    instance: str,
    stage: Stage,
    reads: Mapping[str, tuple[str, str]],
    stages: Mapping[str, Stage],
) -> None:
    """Raises unless the tables that the stage's fields name are of the kinds that they take.

    `reads` holds, for each name that the stage reads, the instance that writes it and the table.
    """
    writers = {writer: stages[writer] for writer, _ in reads.values() if writer in stages}
    columns = columns_of(writers)
    try:
        check_kinds(stage, {read: columns[table] for read, (_, table) in reads.items()})
    except ConfigError as error:
        raise ConfigFileError(f"stages.{instance}: {error}") from error


def check_reads(instance: str, stage: Stage, writers: Mapping[str, Stage | None]) -> None:
    """Raises unless the stage accepts the stages whose tables it reads (`Stage.check_reads`)."""
    of_kernel = {getattr(stage, "gradient", None), *(getattr(stage, "kernel", None) or ())}
    for read, writer in writers.items():
        if read in of_kernel and writer is not None and not writer.is_one_map:
            raise ConfigFileError(
                f"stages.{instance}: found {read}, an instance of {stage_name(writer)} with one "
                "map for examples and another for queries, expected features that have a kernel. "
                "Name an instance of gradient, or score pairs by tracin or similarity."
            )
    try:
        stage.check_reads({read: writer for read, writer in writers.items() if writer is not None})
    except ConfigError as error:
        raise ConfigFileError(f"stages.{instance}: {error}") from error


def check_fit(instance: str, stage: Stage, corpus: Corpus, root: str | None = None) -> None:
    """Raises unless the corpus has the task, tables, queries and texts that the stage needs.

    `root` is the stage of the YAML that the instance was added for, None where it is there itself.
    """
    try:
        _check_fit(instance, stage, corpus)
    except ConfigFileError as error:
        if root is None:
            raise
        raise ConfigFileError(
            str(error).replace(
                f"stages.{instance}: ", f"stages.{root}, for which {instance} is added: ", 1
            )
        ) from error


def check_task(instance: str, stage: Stage, task: str) -> None:
    """Raises unless the stage works on a corpus of this task."""
    if task not in stage.tasks:
        other = stage.instead.get(task)
        raise ConfigFileError(
            f"stages.{instance}: found a corpus with task: {task}, expected "
            f"{' or '.join(stage.tasks)}, which {stage_name(stage)} works on. "
            + (f"Use {other} instead" if other else "Leave the stage out")
            + ", or correct corpus.task."
        )


def _check_fit(instance: str, stage: Stage, corpus: Corpus) -> None:
    check_task(instance, stage, corpus.task)
    model = stage.model_ref
    if model is not None and corpus.task not in model.kind.corpora:
        raise ConfigFileError(
            f"stages.{instance}: found head: {model.head} with a corpus of task: {corpus.task}, "
            f"expected task: {' or '.join(model.kind.corpora)}. Set it in corpus, or another head "
            "in model."
        )
    n_outputs = 1 if corpus.task == "regression" else len(corpus.classes)
    meets_labels = corpus.task in ("classification", "regression") and (
        "label" in stage.reads or any(spec.name == "prediction" for spec in stage.writes)
    )
    if model is not None and meets_labels and model.num_labels not in (None, n_outputs):
        raise ConfigFileError(
            f"stages.{instance}: found num_labels: {model.num_labels}, expected {n_outputs} for a "
            f"corpus with task: {corpus.task}, one output for "
            f"{'the target' if corpus.task == 'regression' else 'each class'}. Correct num_labels."
        )
    explains_tokens = any(spec.name in ("token", "word_path") for spec in stage.writes)
    if explains_tokens and model is not None and not model.kind.is_on_trunk:
        if is_encoder_decoder(model):
            raise ConfigFileError(
                f"stages.{instance}: found head: {model.head} of {model.path}, an encoder-decoder, "
                "which reads every text twice, expected a model that reads it once, as token "
                "attribution changes the words that are read. Set head: probe for its encoder, or "
                "leave the stage out."
            )
    if missing := [r for r in stage.reads if r in SOMETIMES and r not in corpus.tables]:
        raise ConfigFileError(
            f"stages.{instance}: found that it reads {missing[0]}, expected a corpus that has it. "
            "Set `features:` of corpus and queries to a column of vectors or a .npy file."
        )
    if needs_queries(stage) and not corpus.rows("text", "query"):
        raise ConfigFileError(
            f"stages.{instance}: found no queries, expected some: they are what it explains, or "
            "what it measures the examples on. Add `queries:`, or leave the stage out."
        )
    if 0 < (n_queries := corpus.rows("text", "query")) < stage.least_queries:
        raise ConfigFileError(
            f"stages.{instance}: found {n_queries} {'query' if n_queries == 1 else 'queries'}, "
            f"expected at least {stage.least_queries}. Name more, or leave the stage out."
        )
    if stage.query_column is not None:
        _check_query_column(instance, stage.query_column, corpus)
    if "text" in stage.reads and not corpus.has_text:
        raise ConfigFileError(
            f"stages.{instance}: found that it reads the text, expected a corpus with text, and "
            "this one has none (text: null). Work on its features instead, or name the column of "
            "the text."
        )


def needs_queries(stage: Stage) -> bool:
    """Whether a stage has nothing to do without queries: it scores pairs, or values examples."""
    is_of_queries = any({"query_id", "utility"} & set(spec.key) for spec in stage.writes)
    return bool(stage.least_queries) or stage.split == "query" or is_of_queries


def _check_query_column(instance: str, column: str, corpus: Corpus) -> None:
    """Raises unless the queries have the column, beside what is read as text, label or id."""
    columns = corpus.tables["extra"].details["columns"]["query"]
    names = [of["name"] for of in columns if of["stored"] not in OWN]
    if column not in names:
        raise ConfigFileError(
            f"stages.{instance}: found per: {column}, expected a column of the queries beside "
            f"their text, label and id{near(column, names)}: "
            f"{', '.join(names) or 'there is none'}. Correct the name, or leave `per` out."
        )


def check_rounds(
    instance: str, reads: Mapping[str, tuple[str, str]], planned: Mapping[str, Node]
) -> None:
    """Raises where a stage reads rounds of another that ends by a stopping rule."""
    for writer, _ in reads.values():
        if writer in planned and planned[writer].stop_rule() is not None:
            raise ConfigFileError(
                f"stages.{instance}: found that it reads the rounds of {writer}, which ends by a "
                "stopping rule, expected a fixed number of rounds. Leave minutes, stderr and "
                f"sign_confidence of {writer} out."
            )
