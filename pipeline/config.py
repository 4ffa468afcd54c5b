"""Check the configuration of a run, and write it out in full.

One file, one run. Unknown keys and wrong types fail with their path; nothing is guessed. Stages are
plain dataclasses, checked here by pydantic, which no stage imports.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import pydantic

from pipeline.errors import ConfigFileError
from pipeline.given import Given, given_in_file, override, type_text
from pipeline.paths import Inputs
from pipeline.settings import FOR, Run
from pipeline.yaml_text import write_yaml
from stages.catalogue import load, load_metric, metric_names, stage_names
from stages.corpus.source import LABELLED, local
from stages.corpus.yaml_value import in_yaml
from stages.model.spec import ModelSpec
from stages.stage import ConfigError
from storage.credentials import refuse_secrets
from storage.names import is_instance, near

MODELS = ("model", "reference")
"""Fields of stages that name a model."""
LEAST = {"seed": 0, "random_seed": 0, "token_budget": 1}
"""The least value of fields that mean the same in every stage."""


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> Run:
    """The run that the YAML at `path` describes.

    Raises:
        ConfigFileError: the file or an override cannot be used; the message names the place.
    """
    return run_of(given_in_file(path, overrides))


def run_of(given: Given) -> Run:
    """The run that a configuration describes; see `parse_config`."""
    return parse_config(given.raw, given.name, given.folder, given.overridden)


def parse_config(
    raw: Mapping[str, Any],
    name: str,
    folder: str | Path | None = None,
    overridden: Sequence[str] = (),
) -> Run:
    """The run that `raw` describes.

    Args:
        raw: The content of the YAML.
        name: What errors call the YAML.
        folder: Inputs are relative to it; by default to the working directory.
        overridden: Key paths whose values are relative to the working directory in any case.

    Raises:
        ConfigFileError: an unknown key, a wrong type, a stage that does not exist, an input that is
            not in the folder and is in the working directory.
    """
    raw = dict(raw)
    for key in {f.name for f in dataclasses.fields(Run)}.intersection(raw) - set(_names(Run)):
        raise ConfigFileError(
            f"{name}: {key}: found an unknown key, expected one of {', '.join(_names(Run))}. "
            "Remove the key."
        )
    entries = raw.pop("stages", None)
    corpus, queries = raw.get("corpus"), raw.get("queries")
    if isinstance(corpus, Mapping) and isinstance(queries, Mapping):
        taken_over = {key: corpus[key] for key in ("task", "turns") if key in corpus}
        raw["queries"] = {**taken_over, **queries}
    inputs = Inputs(name, local(str(folder or ".")), tuple(overridden))
    checked: Run = _placed(_check(Run, raw, name, ()), inputs)
    _check_pairs(checked, name)
    if entries is None or not isinstance(entries, Mapping) or not entries:
        raise ConfigFileError(
            f"{name}: stages: found {type_text(entries)}, expected a mapping from stage to its "
            "fields. Add for example `stages: {label_issues: {}, freeshap: {}}`."
        )
    stages = {}
    open_lengths = ["model"] if _leaves_length_open(raw.get("model"), checked.model) else []
    for instance, fields in entries.items():
        stage = parse_stage(str(instance), fields, checked.model, name)
        stages[str(instance)] = _with_own_model(stage, fields, str(instance), inputs)
        own = fields.get("model", raw.get("model")) if fields else raw.get("model")
        if _leaves_length_open(own, stage.model_ref):
            open_lengths.append(str(instance))
    for by_stage, key in ((checked.ray.stages, "ray.stages"), (checked.artefacts, "artefacts")):
        # Stages that the YAML does not name are added where another reads them.
        _check_names(by_stage, {**dict.fromkeys(stage_names()), **stages}, f"{name}: {key}")
    if isinstance(checked.shard_size, int) and checked.shard_size < 1:
        raise ConfigFileError(
            f"{name}: shard_size: found {checked.shard_size}, expected at least 1. "
            "Leave it out for the default, auto."
        )
    return dataclasses.replace(checked, stages=stages, open_lengths=tuple(open_lengths))


def parse_stage(instance: str, fields: Any, model: ModelSpec | None, name: str) -> Any:
    """The stage that the YAML entry `instance: fields` describes, its model filled in.

    Raises:
        ConfigFileError: there is no such stage, or its fields are wrong.
    """
    where = ("stages", instance)
    if not is_instance(instance):
        raise ConfigFileError(
            f"{name}: stages: found the name {instance[:60]!r}, expected letters, digits, `_`, `.` "
            "or `-`. Rename the stage, and say what it is by `stage:` in its fields."
        )
    if fields is None:
        fields = {}
    if not isinstance(fields, Mapping):
        raise ConfigFileError(
            f"{name}: stages.{instance}: found {type_text(fields)}, expected a mapping of fields. "
            f"Write `{in_yaml(instance)}: {{}}` for the defaults."
        )
    fields = dict(fields)
    kind = fields.pop("stage", instance)
    try:
        cls = load(str(kind))
    except ConfigError as error:
        raise ConfigFileError(
            f"{name}: stages.{instance}: found no stage {kind!r}{near(kind, stage_names())}, "
            f"expected one of {', '.join(stage_names())}. Correct the name, or add `stage:`."
        ) from error
    fields_of_stage = {f.name: f for f in dataclasses.fields(cls)}
    if "model" in fields_of_stage and "model" not in fields:
        if model is not None:
            fields["model"] = dataclasses.asdict(model)
        elif fields_of_stage["model"].default is dataclasses.MISSING:
            raise ConfigFileError(
                f"{name}: stages.{instance}: found no model, expected one for this stage. "
                "Add `model: {path: ...}` at the top of the file."
            )
    stage = _check(cls, fields, name, where)
    for key, least in LEAST.items():
        value = getattr(stage, key, None) if key in fields_of_stage else None
        if value is not None and not least <= value < 2**63:
            raise ConfigFileError(
                f"{name}: stages.{instance}.{key}: found {value}, expected at least {least}. "
                "Correct it, or leave it out for the default."
            )
    return stage


def parse_metric(metric: str, overrides: Sequence[str] = ()) -> Any:
    """The metric `metric`, whose fields are set by `overrides`, `field=value` each.

    Raises:
        ConfigFileError: there is no such metric, or its fields are wrong.
    """
    if metric not in metric_names():
        raise ConfigFileError(
            f"found no metric {metric!r}{near(metric, metric_names())}, expected one of "
            f"{', '.join(metric_names())}. Correct the name."
        )
    fields: dict[str, Any] = {}
    for assignment in overrides:
        override(fields, assignment)
    return _check(load_metric(metric), fields, metric, ())


def dump_config(run: Run) -> str:
    """The YAML that repeats `run`, with every default written out."""
    raw = {name: getattr(run, name) for name in _names(Run) if name != "stages"}
    values = {key: plain(value) for key, value in raw.items()}
    values["stages"] = {
        instance: {"stage": stage_name(stage), **plain(stage)}
        for instance, stage in run.stages.items()
    }
    return write_yaml(values)


def plain(value: Any) -> Any:
    """`value` in the types that YAML and JSON know: a dataclass as a mapping, a tuple as a list."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    return value


def stage_name(stage: Any) -> str:
    """The name of a stage, that of its module: `ntk` for `stages.features.ntk`."""
    return str(type(stage).__module__).rsplit(".", 1)[-1]


def _check(cls: type[Any], raw: Mapping[str, Any], name: str, where: tuple[str, ...]) -> Any:
    """An object of the dataclass `cls` from `raw`, which stands at the key path `where`.

    Raises:
        ConfigFileError: a key is unknown or missing, or a value has a wrong type.
    """
    if not all(isinstance(key, str) for key in raw):
        odd = next(key for key in raw if not isinstance(key, str))
        raise ConfigFileError(
            f"{name}: {'.'.join(where) or 'top level'}: found the key {odd!r}, expected words. "
            "Put quotes around it if it is a name."
        )
    try:
        # JSON mode: strict about types, yet lists stand for tuples and mappings for dataclasses.
        adapter = _adapter(cls)  # type: ignore[arg-type]  # a class is hashable
        return adapter.validate_json(json.dumps([raw], default=str))[0]
    except ConfigError as error:
        raise ConfigFileError(f"{name}: {'.'.join(where)}{': ' if where else ''}{error}") from error
    except pydantic.ValidationError as error:
        lines = [_explain(cls, detail, name, where) for detail in error.errors()]
        raise ConfigFileError("\n".join(lines)) from error


@functools.cache
def _adapter(cls: type[Any]) -> pydantic.TypeAdapter[list[Any]]:
    """Checks lists of a dataclass; kept, as making it takes milliseconds and a check none."""
    # A list around the class lets the settings reach plain dataclasses, which cannot carry them.
    settings = pydantic.ConfigDict(extra="forbid", strict=True)
    return pydantic.TypeAdapter(list[cls], config=settings)  # type: ignore[valid-type]


def _explain(cls: type[Any], detail: Any, name: str, where: tuple[str, ...]) -> str:
    """The message for one of pydantic's errors: found, expected, what to do."""
    loc = detail["loc"][1:]
    # Of a field that may be of several types, the last part is the type that was tried.
    if len(loc) > 1 and loc[-1] in ("int", "float", "str", "bool"):
        loc = loc[:-1]
    place = [str(part) for part in (*where, *loc) if "[" not in str(part)]
    spot = f"{name}: {'.'.join(place)}"
    if detail["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _fields_at(cls, loc[:-1])
        return (
            f"{spot}: found an unknown key{near(loc[-1], known)}, expected one of "
            f"{', '.join(known)}. Correct or remove it."
        )
    if detail["type"] in ("missing", "missing_argument"):
        return f"{spot}: found nothing, expected a value for this key. Add `{place[-1]}: ...`."
    if detail["type"] == "string_type" and isinstance(detail["input"], bool | int | float):
        shown = "a word such as 'yes' or 'on'" if isinstance(detail["input"], bool) else "it"
        quoted = "" if isinstance(detail["input"], bool) else f": {in_yaml(str(detail['input']))}"
        return (
            f"{spot}: found {detail['input']!r}, which YAML reads in {shown} without quotes, "
            f"expected text. Put quotes around it{quoted}."
        )
    expected = detail["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"{spot}: found {detail['input']!r}, expected {expected}. Correct the value."


def _fields_at(cls: Any, loc: Sequence[Any]) -> list[str]:
    """The names of the fields that `cls` knows at the key path `loc`."""
    for part in loc:
        hints = get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
        options = getattr(hints.get(str(part)), "__args__", (hints.get(str(part)),))
        inner = [option for option in options if dataclasses.is_dataclass(option)]
        cls = inner[0] if inner else cls
    return _names(cls)


def _names(cls: Any) -> list[str]:
    """The names of a dataclass's fields, those that no YAML has left out."""
    return [f.name for f in dataclasses.fields(cls) if f.metadata.get("in_yaml", True)]


def _check_names(by_stage: Mapping[str, Any], stages: Mapping[str, Any], where: str) -> None:
    """Raises unless every key of the mapping at `where` is a stage instance."""
    for name in by_stage:
        if name not in stages and not (FOR in name and name.partition(FOR)[0] in stages):
            raise ConfigFileError(
                f"{where}.{name}: found no stage instance of that name{near(name, stages)}, "
                f"expected one of {', '.join(stages)}. Correct the name."
            )


def _check_pairs(run: Run, name: str) -> None:
    """Raises where only one of corpus and queries has second texts."""
    if run.queries is None or run.corpus.task not in LABELLED:
        return
    named = {"corpus": run.corpus.text_b, "queries": run.queries.text_b}
    given = [key for key, column in named.items() if column]
    if len(given) == 1:
        (other,) = named.keys() - set(given)
        raise ConfigFileError(
            f"{name}: {other}.text_b: found no second text, expected one as in {given[0]}, so that "
            f"pairs are compared with pairs. Name its column under `{other}:`, or leave text_b out "
            "of both."
        )


def _placed(run: Run, inputs: Inputs) -> Run:
    """The run with absolute paths: outputs from the working directory, inputs from the YAML's."""
    store = run.store
    for key, place in (("run", run.run), ("store", store)):
        if place is not None and (not place.strip() or (key == "run" and "://" in place)):
            raise ConfigFileError(
                f"{inputs.name}: {key}: found {place!r}, expected a folder on this machine. Name "
                "one; tables alone may lie at a URL: `store: s3://bucket/tables`."
            )
    sources = {"corpus": run.corpus, "queries": run.queries}
    named = [("run", run.run), ("store", str(store))]
    for key, source in sources.items():
        if source is not None:
            named += [(f"{key}.path", source.path), (f"{key}.features", source.features or "")]
            named += [(f"{key}.corrections", path) for path in source.corrections]
    for key, url in named:
        refuse_secrets(url, key)
    return dataclasses.replace(
        run,
        run=local(run.run),
        store=local(store) if store is not None and "://" not in store else store,
        model=inputs.model(run.model, "model") if run.model is not None else None,
        corpus=inputs.source(run.corpus, "corpus"),
        queries=inputs.source(run.queries, "queries") if run.queries is not None else None,
    )


def _leaves_length_open(raw: Any, model: ModelSpec | None) -> bool:
    """Whether a model that learns completions has no `max_length` in the YAML."""
    is_left_out = isinstance(raw, Mapping) and "max_length" not in raw
    return is_left_out and model is not None and "completion" in model.kind.tasks


def _with_own_model(stage: Any, fields: Any, instance: str, inputs: Inputs) -> Any:
    """The stage; the paths of models that its own entry names are made absolute."""
    own = {
        name: inputs.model(getattr(stage, name), f"stages.{instance}.{name}")
        for name in MODELS
        if isinstance(fields, Mapping) and isinstance(fields.get(name), Mapping)
    }
    return dataclasses.replace(stage, **own) if own else stage
