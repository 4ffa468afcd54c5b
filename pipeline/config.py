"""Read the YAML of a run, check it, and write it out in full.

One file, one run. Unknown keys and wrong types fail with their path; nothing is guessed. Stages are
plain dataclasses, checked here by pydantic, which no stage imports. There is no interpolation, no
inheritance of files and no code in the YAML; `--set key.path=value` is the one way to override.
"""

import copy
import dataclasses
import difflib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import pydantic
import yaml

from pipeline.errors import ConfigFileError
from pipeline.paths import Inputs
from pipeline.settings import FOR, Run
from stages.catalogue import load, load_metric, metric_names, stage_names
from stages.corpus.source import local
from stages.model.spec import ModelSpec
from stages.stage import ConfigError
from storage.credentials import refuse_secrets


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> Run:
    """The run that the YAML at `path` describes.

    Args:
        path: A YAML file; its inputs are relative to its own folder (`pipeline.paths`).
        overrides: `key.path=value`, the value in YAML; paths are relative to the working directory.

    Raises:
        ConfigFileError: the file or an override cannot be used; the message names the place.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        near = difflib.get_close_matches(str(path), [str(p) for p in Path().glob("configs/*")], 1)
        raise ConfigFileError(
            f"{path}: found no such file, expected the YAML of a run. "
            + (f"Did you mean {near[0]}?" if near else "Start from a copy of configs/tiny.yaml.")
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigFileError(
            f"{path}: found a file that cannot be read ({error}), expected YAML in UTF-8. "
            "Name a YAML file."
        ) from error
    return parse_text(text, str(path), overrides)


def parse_text(text: str, path: str, overrides: Sequence[str] = ()) -> Run:
    """The run that the text of the YAML at `path` describes; see `read_config`.

    Raises:
        ConfigFileError: the text or an override cannot be used; the message names the place.
    """
    try:
        raw = yaml.load(text, Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        raise ConfigFileError(
            f"{path}: found text that is not YAML ({' '.join(str(error).split())}), expected a "
            "mapping with run, corpus and stages. Check the indentation there."
        ) from error
    if not isinstance(raw, dict):
        raise ConfigFileError(
            f"{path}: found {_kind(raw)}, expected a mapping with run, corpus and stages. "
            "Start from a copy of configs/tiny.yaml."
        )
    for override in overrides:
        _override(raw, override)
    overridden = tuple(override.partition("=")[0] for override in overrides)
    return parse_config(raw, path, os.path.dirname(local(path)), overridden)


def read_mapping(config: Mapping[str, Any], overrides: Sequence[str] = ()) -> Run:
    """The run that a mapping describes, whose keys and values are those of the YAML.

    Args:
        config: The mapping, which is not changed; relative paths in it are relative to the
            working directory.
        overrides: `key.path=value`, the value in YAML.

    Raises:
        ConfigFileError: the mapping or an override cannot be used; errors call it `config`.
    """
    raw = copy.deepcopy(dict(config))
    for override in overrides:
        _override(raw, override)
    return parse_config(raw, "config")


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
    entries = raw.pop("stages", None)
    corpus, queries = raw.get("corpus"), raw.get("queries")
    if isinstance(corpus, Mapping) and isinstance(queries, Mapping) and "task" in corpus:
        raw["queries"] = {"task": corpus["task"], **queries}
    inputs = Inputs(name, local(str(folder or ".")), tuple(overridden))
    checked: Run = _placed(_check(Run, raw, name, ()), inputs)
    if entries is None or not isinstance(entries, Mapping) or not entries:
        raise ConfigFileError(
            f"{name}: stages: found {_kind(entries)}, expected a mapping from stage to its fields. "
            "Add for example `stages: {label_issues: {}, freeshap: {}}`."
        )
    stages = {}
    for instance, fields in entries.items():
        stage = parse_stage(str(instance), fields, checked.model, name)
        stages[str(instance)] = _with_own_model(stage, fields, str(instance), inputs)
    for by_stage, key in ((checked.ray.stages, "ray.stages"), (checked.artefacts, "artefacts")):
        # Stages that the YAML does not name are added where another reads them.
        _check_names(by_stage, {**dict.fromkeys(stage_names()), **stages}, f"{name}: {key}")
    if isinstance(checked.shard_size, int) and checked.shard_size < 1:
        raise ConfigFileError(
            f"{name}: shard_size: found {checked.shard_size}, expected at least 1. "
            "Leave it out for the default, auto."
        )
    return dataclasses.replace(checked, stages=stages)


def parse_stage(instance: str, fields: Any, model: ModelSpec | None, name: str) -> Any:
    """The stage that the YAML entry `instance: fields` describes, its model filled in.

    Raises:
        ConfigFileError: there is no such stage, or its fields are wrong.
    """
    where = ("stages", instance)
    if fields is None:
        fields = {}
    if not isinstance(fields, Mapping):
        raise ConfigFileError(
            f"{name}: stages.{instance}: found {_kind(fields)}, expected a mapping of fields. "
            f"Write `{instance}: {{}}` for the defaults."
        )
    fields = dict(fields)
    kind = fields.pop("stage", instance)
    try:
        cls = load(str(kind))
    except ConfigError as error:
        near = difflib.get_close_matches(str(kind), stage_names(), 1)
        raise ConfigFileError(
            f"{name}: stages.{instance}: found no stage {kind!r}, expected one of "
            f"{', '.join(stage_names())}. "
            + (f"Did you mean {near[0]}?" if near else "Correct the name, or add `stage:`.")
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
    return _check(cls, fields, name, where)


def parse_metric(metric: str, overrides: Sequence[str] = ()) -> Any:
    """The metric `metric`, whose fields are set by `overrides`, `field=value` each.

    Raises:
        ConfigFileError: there is no such metric, or its fields are wrong.
    """
    if metric not in metric_names():
        near = difflib.get_close_matches(metric, metric_names(), 1)
        raise ConfigFileError(
            f"found no metric {metric!r}, expected one of {', '.join(metric_names())}. "
            + (f"Did you mean {near[0]}?" if near else "Correct the name.")
        )
    fields: dict[str, Any] = {}
    for override in overrides:
        _override(fields, override)
    return _check(load_metric(metric), fields, metric, ())


def dump_config(run: Run) -> str:
    """The YAML that repeats `run`, with every default written out."""
    raw = {f.name: getattr(run, f.name) for f in dataclasses.fields(run) if f.name != "stages"}
    values = {key: plain(value) for key, value in raw.items()}
    values["stages"] = {
        instance: {"stage": stage_name(stage), **plain(stage)}
        for instance, stage in run.stages.items()
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


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


class _UniqueKeys(yaml.SafeLoader):
    """A YAML loader that raises where a mapping has a key twice, instead of taking the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = str(getattr(key_node, "value", ""))
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"found the key {key!r} twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


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
    # A list around the class lets the settings reach plain dataclasses, which cannot carry them.
    settings = pydantic.ConfigDict(extra="forbid", strict=True)
    adapter = pydantic.TypeAdapter(list[cls], config=settings)  # type: ignore[valid-type]
    try:
        # JSON mode: strict about types, yet lists stand for tuples and mappings for dataclasses.
        return adapter.validate_json(json.dumps([raw], default=str))[0]
    except ConfigError as error:
        raise ConfigFileError(f"{name}: {'.'.join(where)}{': ' if where else ''}{error}") from error
    except pydantic.ValidationError as error:
        lines = [_explain(cls, detail, name, where) for detail in error.errors()]
        raise ConfigFileError("\n".join(lines)) from error


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
        near = difflib.get_close_matches(str(loc[-1]), known, 1)
        hint = f"Did you mean {near[0]}?" if near else "Remove the key."
        return f"{spot}: found an unknown key, expected one of {', '.join(known)}. {hint}"
    if detail["type"] in ("missing", "missing_argument"):
        return f"{spot}: found nothing, expected a value for this key. Add `{place[-1]}: ...`."
    expected = detail["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"{spot}: found {detail['input']!r}, expected {expected}. Correct the value."


def _fields_at(cls: Any, loc: Sequence[Any]) -> list[str]:
    """The names of the fields that `cls` knows at the key path `loc`."""
    for part in loc:
        hints = get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
        options = getattr(hints.get(str(part)), "__args__", (hints.get(str(part)),))
        inner = [option for option in options if dataclasses.is_dataclass(option)]
        cls = inner[0] if inner else cls
    return [f.name for f in dataclasses.fields(cls)]


def _check_names(by_stage: Mapping[str, Any], stages: Mapping[str, Any], where: str) -> None:
    """Raises unless every key of the mapping at `where` is a stage instance."""
    for name in by_stage:
        if name not in stages and not (FOR in name and name.partition(FOR)[0] in stages):
            raise ConfigFileError(
                f"{where}.{name}: found no stage instance of that name, expected one of "
                f"{', '.join(stages)}. Correct the name."
            )


def _override(raw: dict[str, Any], override: str) -> None:
    """Sets one value in `raw`; `override` is `key.path=value`."""
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigFileError(
            f"--set {override}: found no key.path=value, expected for example "
            "stages.freeshap.rounds=40. Put a dot between keys and one = before the value."
        )
    place = raw
    for depth, key in enumerate(keys[:-1]):
        inner = place.get(key)
        if inner is None:
            inner = place[key] = {}
        if not isinstance(inner, dict):
            raise ConfigFileError(
                f"--set {override}: found {_kind(inner)} at {'.'.join(keys[: depth + 1])}, "
                "expected a mapping. Correct the path."
            )
        place = inner
    try:
        place[keys[-1]] = yaml.load(text, Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        raise ConfigFileError(
            f"--set {override}: found a value that is not YAML, expected for example 40, 0.1 or "
            "[a, b]. Put quotes around text with special signs."
        ) from error


def _placed(run: Run, inputs: Inputs) -> Run:
    """The run with absolute paths: outputs from the working directory, inputs from the YAML's."""
    store = run.store
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


def _with_own_model(stage: Any, fields: Any, instance: str, inputs: Inputs) -> Any:
    """The stage; the path of a model that its own entry names is made absolute."""
    if not isinstance(fields, Mapping) or not isinstance(fields.get("model"), Mapping):
        return stage
    model = inputs.model(stage.model, f"stages.{instance}.model")
    return dataclasses.replace(stage, model=model)


def _kind(value: Any) -> str:
    """A value in an error's words: its type, and what it holds."""
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"{type(value).__name__} {str(value)[:40]!r}"
