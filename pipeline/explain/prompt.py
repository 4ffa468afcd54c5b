"""A prompt that the run's language model answers, as a row of the run's corpus."""

import json
from typing import Any

from pipeline.errors import RunError
from pipeline.finished import Finished
from pipeline.progress import Progress
from pipeline.task import StoredInputs
from stages.corpus.cells import is_broken, show
from stages.corpus.conversations import ASSISTANT, read_conversation
from stages.model.measurement import Measurement, load_measurement
from stages.model.threads import set_threads
from stages.model.writing import written

Row = tuple[str, str | None]
"""A text and its second text, as `explain` takes them."""


WRITER = "--prompt"
"""Where the model that answers is kept, among what stages opened."""


def answered(
    finished: Finished, prompt: str, new_tokens: int, progress: Progress, kept: dict[str, Any]
) -> Row:
    """The row whose prompt is given and whose answer the run's language model writes.

    Of a corpus of conversations the prompt is what a user says, or a conversation in JSON whose
    answer is open. `kept` is what was opened before, to which the model is added.

    Raises:
        RunError: the run has no language model, the prompt is no text or no conversation, or
            nothing is written.
        stages.stage.StageError: the prompt does not fit the model.
    """
    able = {
        instance: stage.model_ref
        for instance, stage in finished.stages.items()
        if stage.model_ref is not None
        and stage.model_ref.head == "completion"
        and "text" in stage.reads
    }
    if not able:
        raise RunError(
            "--prompt: found no stage with a language model (head: completion), expected one that "
            "answers it. Use --text, or add text_length: {}, which runs no network, under "
            "`stages:` and run again."
        )
    if is_broken(prompt):
        raise RunError(
            f"--prompt: found text that is not UTF-8 ({show(prompt)[:80]}), expected whole "
            "characters. Convert the text."
        )
    instance, model = next(iter(able.items()))
    job = finished.job(instance)
    set_threads(job.threads)
    progress.stepped("answer", 0, 1)
    if WRITER not in kept:
        inputs = StoredInputs(job.inputs, job.stage.split, finished.store)
        kept[WRITER] = load_measurement(model, inputs)
    measurement: Measurement = kept[WRITER]
    messages = None
    text = prompt
    if measurement.form == "messages":
        messages = _messages(prompt)
        text = json.dumps(messages, ensure_ascii=False)
    answer = written(measurement, text, None, new_tokens)
    progress.stepped("answer", 1, 1)
    if not answer.strip():
        raise RunError(
            "--prompt: found that the model ends its answer at once, expected some words to "
            "explain. Ask something else, or give an answer of your own by --text."
        )
    if messages is not None:
        said = [*messages, {"role": "assistant", "content": answer}]
        return json.dumps(said, ensure_ascii=False), None
    return (prompt, answer) if measurement.form == "prompt_completion" else (prompt + answer, None)


def _messages(prompt: str) -> list[dict[str, Any]]:
    """The conversation that a prompt is: its own JSON, or one message of a user.

    Raises:
        RunError: a message of it cannot be read.
    """
    try:
        messages = json.loads(prompt)
    except (ValueError, RecursionError):
        messages = None
    is_list = isinstance(messages, list) and bool(messages)
    if not is_list or not all(isinstance(turn, dict) for turn in messages):
        return [{"role": "user", "content": prompt}]
    conversation = read_conversation([*messages, {"role": ASSISTANT, "content": "?"}])
    if conversation.text is None:
        raise RunError(
            f"--prompt: found {conversation.reason}, expected text, or a conversation in JSON as "
            'in the corpus whose answer is open, such as [{"role": "user", "content": "…"}]. '
            "Correct its messages."
        )
    read: list[dict[str, Any]] = json.loads(conversation.text)
    return read[:-1]
