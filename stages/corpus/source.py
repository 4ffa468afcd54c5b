"""The configuration of a source of rows: a file, folder or data set, and its columns."""

import glob
import os
import re
from dataclasses import dataclass

from stages.corpus.conversations import Turns
from stages.corpus.yaml_value import in_yaml
from stages.stage import ConfigError, CorpusTask, DataError
from storage.names import near

KINDS = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
}
ENDINGS = ", ".join(KINDS)
LEARNED: tuple[CorpusTask, ...] = ("completion", "preference")
"""Tasks whose rows are texts that a language model learns to write."""
LABELLED: tuple[CorpusTask, ...] = ("classification", "regression")
"""Tasks whose rows have a label column; a completion is its own target."""


@dataclass(frozen=True)
class FlipLabels:
    """Labels that are made wrong on purpose, so that finding them again can be measured."""

    fraction: float
    """Part of the labelled rows whose label is changed, in [0, 1)."""
    seed: int = 0
    """Seed of the choice of rows, and of the other class that each of them gets."""

    def __post_init__(self) -> None:
        """Refuses a fraction outside of [0, 1), such as one that leaves no right label."""
        if not 0 <= self.fraction < 1:
            raise ConfigError(
                f"flip_labels.fraction: found {self.fraction}, expected a number in [0, 1). "
                "Write 0.1 to flip one label in ten."
            )


@dataclass(frozen=True)
class Source:
    """One set of rows: the path to them, and the columns with their texts, labels and ids."""

    path: str
    """Id of a data set on the hub, a folder written by `save_to_disk`, a folder of data files, or
    a Parquet, JSONL or CSV path or glob; relative to the folder of the YAML, as all inputs are. Or
    a URL of files (`stages.corpus.source_files`)."""
    name: str | None = None
    """Configuration of a data set on the hub."""
    revision: str | None = None
    """Branch, tag or commit of a data set on the hub."""
    split: str | None = None
    """Split expression such as `train`, `train[:1000]` or `train[:50%]+test`; files are `train`."""
    task: CorpusTask = "classification"
    """What a model learns from a row: its class, its number, the text it should write, which of two
    texts it should rather write, or where in a text a question is answered. Queries have the task
    of the corpus."""
    text: str | None = "text"
    """Column of the text; null for rows that are vectors alone. Of question answering, the text
    that is asked about: by itself `text`, or else `context`."""
    text_b: str | None = None
    """Column of the second text of a pair; of question answering, of the question, by itself
    `question`."""
    prompt: str | None = None
    """Completion: column of the prompt; a row's may be empty. Goes with `completion`. Both hold
    texts, or both lists of messages. Preference: the prompt of both answers, by itself `prompt`;
    without one it is what both begin with."""
    completion: str | None = None
    """Completion: column of the text that the model should write after the prompt."""
    messages: str | None = None
    """Completion: column of a conversation, each cell a list of {role, content} or its JSON. If no
    column is named, prompt and completion are taken where both are there, else messages, else text,
    else `conversations`, else `instruction`, `input` and `output` (`stages.corpus.forms`)."""
    chosen: str | None = None
    """Preference: column of the answer that was chosen, by itself `chosen`; it holds texts, or
    lists of messages (`stages.corpus.preferences`)."""
    rejected: str | None = None
    """Preference: column of the answer that was rejected, by itself `rejected`."""
    turns: Turns = "all"
    """Completion: which messages of the assistant are learned of a conversation, `all` or the
    `last`; of these, those that no mark of their own leaves out. Queries take it over."""
    features: str | None = None
    """Vectors that the user already has: a column of lists of numbers, or a `.npy` file with one
    row per row of the source as the split expression gives them. They are kept in float32."""
    label: str | None = "label"
    """Column of the class or, for a regression, of the number; null for queries without labels.
    Other tasks have none: known answers to questions are carried along as any column."""
    id: str | None = None
    """Column with an id of each row that never changes; without one, the row's number is its id."""
    classes: tuple[str, ...] | None = None
    """Names of the classes in the order of their indices; otherwise taken from the labels."""
    flip_labels: FlipLabels | None = None
    """Labels to make wrong on purpose, on the corpus only."""
    corrections: tuple[str, ...] = ()
    """Reviewed files, applied in order: columns source_id or example_id, decision, new_label."""

    def __post_init__(self) -> None:
        """Refuses columns and classes that do not fit the task or one another.

        Raises:
            ConfigError: the path is empty, class names are repeated or fewer than two, or a field
                belongs to another task.
        """
        if not self.path:
            raise ConfigError(
                "path: found an empty string, expected a hub id, folder, file or glob. Set path."
            )
        if self.classes is not None and len(set(self.classes)) < max(2, len(self.classes)):
            raise ConfigError(
                f"classes: found {list(self.classes)}, expected at least two different names. "
                "List every class once, in the order of the label's indices."
            )
        self._check_task()
        if self.task not in LABELLED and self.label not in (None, "label"):
            raise ConfigError(
                f"label: found {self.label} with task: {self.task}, expected none: its rows are "
                "not labelled. Remove label; the column is carried along."
            )
        if self.task == "completion":
            self._check_completion()
        elif self.task == "preference":
            self._check_preference()
        elif self.task == "question_answering" and self.text is None:
            raise ConfigError(
                "text: found null with task: question_answering, expected the column of the text "
                "that is asked about. Name it."
            )
        elif self.text is None and (self.features is None or self.text_b is not None):
            raise ConfigError(
                f"text: found null with features: {self.features} and text_b: {self.text_b}, "
                "expected a column, or features and no text_b. Name the column of the text, or "
                "set features."
            )

    def _check_task(self) -> None:
        wanted: dict[str, tuple[CorpusTask, ...]] = {
            "classes": ("classification",),
            "flip_labels": ("classification",),
            "prompt": LEARNED,
            "completion": ("completion",),
            "messages": ("completion",),
            "chosen": ("preference",),
            "rejected": ("preference",),
        }
        for name, tasks in wanted.items():
            if getattr(self, name) is not None and self.task not in tasks:
                fits = " or ".join(tasks)
                raise ConfigError(
                    f"{name}: found it with task: {self.task}, expected it with task: {fits} only. "
                    f"Remove {name}, or set task: {fits}."
                )
        if self.turns != "all" and self.task != "completion":
            raise ConfigError(
                f"turns: found {self.turns} with task: {self.task}, expected it with task: "
                "completion only. Remove turns, or set task: completion."
            )

    def _check_completion(self) -> None:
        if self.text_b is not None:
            raise ConfigError(
                f"text_b: found {self.text_b} with task: completion, expected none. Remove text_b; "
                "for a pair of texts name prompt and completion."
            )
        if (self.prompt is None) != (self.completion is None):
            raise ConfigError(
                f"prompt: found prompt: {self.prompt} and completion: {self.completion}, expected "
                "both or neither. Name both; rows without a prompt are task: completion with text."
            )
        own_text = self.text if self.text != "text" else None
        named = {"prompt": self.prompt, "messages": self.messages, "text": own_text}
        given = [name for name, column in named.items() if column is not None]
        if len(given) > 1:
            raise ConfigError(
                f"{given[0]}: found {' and '.join(given)} named, expected one form of a "
                "completion: prompt and completion, messages, or text. Remove the others."
            )

    def _check_preference(self) -> None:
        for name in ("text", "text_b"):
            if getattr(self, name) not in (None, "text"):
                raise ConfigError(
                    f"{name}: found {getattr(self, name)} with task: preference, expected none. "
                    f"Remove {name}; name prompt, chosen and rejected."
                )

    @property
    def features_file(self) -> str | None:
        """Path or URL of the `.npy` file of the vectors; None where they are a column, or none."""
        is_file = self.features is not None and ending(self.features) == ".npy"
        return self.features if is_file else None


def is_url(path: str) -> bool:
    """Whether `path` is a URL, of an object store or a server."""
    return "://" in path


def ending(path: str) -> str:
    """The ending of a file's name in lower case, such as `.csv`; a query of a URL is no part of it.

    Nothing else of the path is looked at.
    """
    is_web = path.startswith(("http://", "https://"))
    return os.path.splitext(re.split("[?#]", path)[0] if is_web else path)[1].lower()


def local(path: str) -> str:
    """The absolute path of a local path; `~` is the home folder."""
    return os.path.abspath(os.path.expanduser(path))


def is_local(path: str) -> bool:
    """Whether a path, not a URL, names something on disk; an existing one wins over a hub id."""
    if glob.has_magic(path) or os.path.exists(local(path)) or path.startswith(("/", ".", "~")):
        return True
    if ending(path) in KINDS:
        return True
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        raise DataError(
            f"{path}: found neither a file or folder of that name nor the form of a hub id, "
            "expected owner/name, a local path or glob, or the URL of files (s3://, gs://, "
            "abfs://, https://). Correct path."
        )
    return False


def matches(path: str) -> list[str]:
    """The files that `path`, a file or a glob, names: sorted absolute paths.

    Raises:
        DataError: there is no such file.
    """
    whole = local(path)
    if os.path.isfile(whole):
        return [whole]
    if glob.has_magic(path):
        found = sorted(f for f in glob.glob(whole, recursive=True) if os.path.isfile(f))
        if found:
            return found
        raise DataError(
            f"{path}: found no file that the pattern matches (looked for {whole}), expected at "
            "least one. Correct the pattern; a relative one begins in the folder of the YAML."
        )
    folder = os.path.dirname(whole)
    names = os.listdir(folder) if os.path.isdir(folder) else []
    names = [n for n in names if n.endswith(tuple(KINDS)) or os.path.isdir(f"{folder}/{n}")]
    meant = near(os.path.basename(whole), names, in_yaml)
    raise DataError(
        f"{path}: found no file or folder at {whole}{meant}, expected one with an ending among "
        f"{ENDINGS}. Correct path."
    )
