"""A finished run, opened to compute more with its stages: their tables, by manifest."""

from typing import Any

from pipeline.corpus import Corpus
from pipeline.errors import RunError
from pipeline.folder import RunFolder
from pipeline.model_files import changed_model, fingerprints_in
from pipeline.node import CORPUS_INSTANCE
from pipeline.plan import sources, stages_in_order
from pipeline.task import Job
from storage.manifest import Manifest
from storage.table import Store


class Finished:
    """The stages of a run, and the tables that its record names; nothing is planned or written."""

    def __init__(self, folder: RunFolder):
        """Reads the run's files.

        Raises:
            pipeline.errors.RunError: the folder holds no run.
        """
        self.run = folder.read_run()
        self.stages, _ = stages_in_order(self.run)
        record = folder.read_record()
        self.store: Store = folder.store(record)
        self._folder, self._tables = folder, record["tables"]

    def sources(self, instance: str) -> dict[str, tuple[str, str]]:
        """For each name that an instance reads: the instance that writes it, and the table."""
        return sources(instance, self.stages)

    def speaks_for(self, instance: str) -> str | None:
        """The `speaks_for` of an instance's stage, or else of one that it reads, as of gradients.

        See `stages.stage.Stage`.
        """
        writers = (writer for writer, _ in self.sources(instance).values())
        stages = (self.stages.get(name) for name in (instance, *writers))
        declared = (stage.speaks_for for stage in stages if stage is not None)
        return next((output for output in declared if output is not None), None)

    def manifest(self, instance: str, table: str) -> Manifest:
        """The manifest of a table of an instance.

        Raises:
            RunError: the table is not whole.
        """
        return self.store.read_manifest(table, self._key(instance, table))

    def has(self, instance: str, table: str) -> bool:
        """Whether the run names a table of an instance, whole or not."""
        return table in self._tables.get(instance, {})

    def corpus(self, table: str) -> Manifest:
        """The manifest of a table of the corpus."""
        return self.manifest(CORPUS_INSTANCE, table)

    def job(self, instance: str) -> Job:
        """The instance with the store, inputs and threads that its tasks share.

        Raises:
            RunError: a table that it reads is not whole, or its model is another one by now.
        """
        self._check_models(instance)
        inputs = {
            read: (table, self._key(writer, table))
            for read, (writer, table) in self.sources(instance).items()
        }
        threads = self.run.resources(instance).cpus
        return Job(instance, self.stages[instance], self.store.url, inputs, threads)

    def _check_models(self, instance: str) -> None:
        """Raises where a model of an instance is not the one that its rows were computed with."""
        whole = [t for t, state in self._tables.get(instance, {}).items() if state["manifest"]]
        known = fingerprints_in(self.manifest(instance, whole[0]).fields) if whole else {}
        if not known:
            return
        has_chats = Corpus({"text": self.corpus("text")}).has_chats
        path = changed_model(self.stages[instance], known, has_chats)
        if path is not None:
            raise RunError(
                f"{path}: found other files of the model than {instance} of this run was computed "
                "with, expected the same, as new rows are compared with stored ones. Put them "
                f"back, or run `assay run {self._folder.config}`, which computes anew what follows "
                "from them."
            )

    def _key(self, instance: str, table: str) -> str:
        """The manifest key of a table of an instance; raises where it has none yet."""
        state: dict[str, Any] = self._tables.get(instance, {}).get(table, {})
        if not state.get("manifest"):
            raise RunError(
                f"{self._folder.path}: found that the table {table} of {instance} is not whole "
                "yet, expected a run that came to its end. Go on with `assay run "
                f"{self._folder.config}`."
            )
        return str(state["manifest"])
