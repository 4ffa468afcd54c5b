"""Whether a run that came to its end has anything to do, known before a stage is imported.

Stages import torch and transformers, which take longer than all else that a run with nothing to do
needs. So the record of a run that came to its end holds, under `finished`, what its plan followed
from:

    asked     the configuration as it was given, and where its paths begin
    code      assay's own source, and the versions of the packages that manifests name
    stages    the versions of its stages
    sources   the corpus and the queries, with their reviews and vectors, each with its fingerprint
    models    the models that its stages run, each with its fingerprints
    files     other files that its stages' rows follow from, each with its digest
    said      what was said of the plan

Where all of it is as it was, and the files that the run names pass the same look as those of a
plan, planning again would give the same plan, of which everything is done. Where anything differs,
is damaged or cannot be read, the run is planned.
"""

import dataclasses
import logging
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.code_version import PACKAGES, package_version, source_digest
from pipeline.config import stage_name
from pipeline.corpus_writer import INGEST_VERSION
from pipeline.errors import RunFolderError
from pipeline.folder import RunFolder
from pipeline.given import Given
from pipeline.lock import hold
from pipeline.plan import Plan
from pipeline.progress import Progress, plan_lines
from pipeline.settings import Run
from pipeline.store_users import register
from pipeline.verify import claims_of_record, damaged_maps, look_at
from stages.catalogue import loaded_version
from stages.corpus.load import fingerprint as source_fingerprint
from stages.corpus.source import FlipLabels, Source, local
from stages.model.hub import ModelFiles, content_digest, fingerprint
from stages.model.refusals import reading_fingerprint
from stages.model.spec import ModelSpec
from stages.stage import Stage, StageError
from storage.damage import DamagedFiles
from storage.manifest import digest
from storage.schema import FileError
from storage.table import Store

LOG = logging.getLogger(__name__)


def asked(given: Given) -> str:
    """Stands for a configuration as it was given, and for where its paths begin."""
    return digest([repr(given.raw), given.folder, given.overridden, os.getcwd()])


def basis_of(asked: str, run: Run, stages: Iterable[Stage], store: Store) -> dict[str, Any] | None:
    """What a plan of `run` follows from, as it is now; None where something cannot be read.

    To be called before any of it is used: what changes while the run is at work differs the next
    time. `asked` stands for the configuration that the run was given as; `store` has notes of the
    sources' files.
    """
    sources = [source for source in (run.corpus, run.queries) if source is not None]
    try:
        return {
            "asked": asked,
            "code": _code(),
            "sources": [[dataclasses.asdict(s), source_fingerprint(s, store)] for s in sources],
            "models": [[list(m), *_fingerprints(m)] for m in _models(stages)],
            "files": [[str(path), content_digest(path).hex()] for path in _files(stages)],
        }
    except (StageError, OSError) as error:
        LOG.debug("cannot be read: %s", error)
        return None


def kept_of(
    plan: Plan, basis: Mapping[str, Any], stops: Sequence[tuple[str, str]]
) -> dict[str, Any] | None:
    """What the record of a run keeps at its end, to know the next time that nothing is to do.

    Args:
        plan: The plan, of which everything is done.
        basis: What it followed from.
        stops: What was said of rules that ended rounds: lines, each with its style.
    """
    stages = [node.stage for node in plan.nodes]
    try:
        files = list(map(str, _files(stages)))
    except StageError:
        return None  # one was removed meanwhile
    models = [list(m) for m in _models(stages)]
    if ([m for m, *_ in basis["models"]], [f for f, _ in basis["files"]]) != (models, files):
        return None  # stages that the size of the corpus chose run others
    versions = {stage_name(stage): stage.version for stage in stages}
    return {**basis, "stages": versions, "said": [*plan_lines(plan), *stops]}


def finished_already(
    given: Given, progress: Progress | None = None, waits: bool = False
) -> RunFolder | None:
    """The folder of the run that `given` describes, where it has nothing to do; else None.

    Args:
        given: The configuration.
        progress: Hears what was said of the plan.
        waits: Whether to wait where another driver works in the run's folder.

    Raises:
        RunFolderError: another driver is at work.
        storage.schema.StorageError: the store does not answer.
    """
    progress = progress or Progress()
    place = given.raw.get("run")
    folder = RunFolder(Path(local(place))) if isinstance(place, str) and place else None
    if folder is None or not folder.record.is_file():
        return None
    with hold(folder.path, waits, progress.say):
        try:
            record = folder.read_record()
        except RunFolderError:
            return None
        kept = record.get("finished") or {}
        if kept.get("asked") != asked(given) or not _is_as_it_was(folder, record, kept):
            return None
        progress.reused([(text, style) for text, style in kept["said"]])
    return folder


def _is_as_it_was(folder: RunFolder, record: dict[str, Any], kept: dict[str, Any]) -> bool:
    """Whether code, inputs, and the files of run and store are as when the run came to its end."""
    try:
        if record["path"] != str(folder.path) or folder.faults(record) or kept["code"] != _code():
            return False
        if any(loaded_version(name) not in (None, v) for name, v in kept["stages"].items()):
            return False
        store = folder.store(record)
        for fields, was in kept["sources"]:
            if source_fingerprint(_source(fields), store) != was:
                return False
        if any(_fingerprints(ModelFiles(*files)) != was for files, *was in kept["models"]):
            return False
        if any(content_digest(Path(path)).hex() != was for path, was in kept["files"]):
            return False
        claims = claims_of_record(record)
        if any(claim.manifest is None for claim in claims):
            return False
        look_at(claims, store)
        if damaged_maps(claims, store):
            return False
        register(store, record)
    except (StageError, FileError, DamagedFiles, OSError) as error:
        LOG.info("planned again: %s", error)
        return False
    return True


def _code() -> str:
    versions = [package_version(package) for package in PACKAGES]
    return digest([source_digest(), INGEST_VERSION, platform.python_version(), versions])


def _models(stages: Iterable[Stage]) -> list[ModelFiles]:
    """The files of all models that are a field of a stage, in one order."""
    values = [getattr(stage, f.name) for stage in stages for f in dataclasses.fields(stage)]
    models = [value for value in values if isinstance(value, ModelSpec)]
    files = {ModelFiles(m.path, m.revision, m.adapter, m.trust_remote_code) for m in models}
    return sorted(files, key=repr)


def _files(stages: Iterable[Stage]) -> list[Path]:
    return sorted({path for stage in stages for path in stage.key_files})


def _fingerprints(model: ModelFiles) -> list[str]:
    """What changes with the files of a model: weights, tokenizer, adapter, templates of chats."""
    return [fingerprint(model, reads_chats=True), reading_fingerprint(model)]


def _source(fields: dict[str, Any]) -> Source:
    """The source that `dataclasses.asdict` and JSON made these fields of."""
    values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in fields.items()}
    if values["flip_labels"] is not None:
        values["flip_labels"] = FlipLabels(**values["flip_labels"])
    return Source(**values)
