"""Tiny models with their tokenizers, a few rows of text, and tables held in memory."""

import copy
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from stages.model.layers import trained_layers
from stages.model.measurement import Measurement
from stages.model.spec import Trained
from stages.predictions.probe import Probe
from stages.reading.vectors import matrix_of
from stages.stage import Part, Vectors

WORDS = "a the film plot is was good bad dull bright very not and but slow ##ly ##er".split()
ROWS = [
    ("good film", None),
    ("a very dull and slowly bad plot but bright film", None),
    ("the plot is slower", "the film was good"),
    ("not bad", None),
    ("the film is very very very good and not dull", "bad"),
    ("dull", None),
    ("the slow plot was good but the good film was slow", None),
]


class MemoryInputs:
    """What `stages.stage.Inputs` promises, from tables in memory."""

    def __init__(
        self,
        tables: Mapping[str, pa.Table],
        details: Mapping[str, Mapping[str, Any]] | None = None,
        vectors: Mapping[str, Vectors] | None = None,
    ) -> None:
        self.part = Part("example", 0)
        self.opened: Any = None
        self.written: dict[str, pa.Table] = {}
        self._tables, self._details, self._vectors = tables, details or {}, vectors or {}

    def table(self, name: str, role: str | None = None) -> pa.Table:
        return self._tables[name]

    def vectors(self, name: str, role: str) -> Vectors:
        return self._vectors[name]

    def details(self, name: str) -> Mapping[str, Any]:
        return self._details.get(name, {})

    def run(self, stage: Any) -> pa.Table:
        """All rows of the stage's first table, checked and in key order; `written` holds all."""
        if hasattr(stage, "open"):
            self.opened = stage.open(self)
        found: dict[str, list[pa.RecordBatch]] = {spec.name: [] for spec in stage.writes}
        for name, batch in stage.compute(self):
            found[name].append(batch)
        self.written = {
            spec.name: spec.check(
                pa.Table.from_batches(found[spec.name], None if found[spec.name] else spec.schema)
            )
            for spec in stage.writes
        }
        return self.written[stage.writes[0].name]


class ShardedInputs(MemoryInputs):
    """Tables in memory whose examples are cut into `n_shards` shards, by turns.

    Those of `whole` are not cut, nor are those without roles.
    """

    def __init__(
        self,
        tables: Mapping[str, pa.Table],
        details: Mapping[str, Mapping[str, Any]] | None = None,
        n_shards: int = 3,
        whole: tuple[str, ...] = (),
    ) -> None:
        super().__init__(tables, details)
        self._n_shards, self._whole, self.facts = n_shards, whole, [{}]

    def table(self, name: str, role: str | None = None) -> pa.Table:
        found = self._tables[name]
        if name in self._whole or "role" not in found.column_names:
            return found
        if self.part.role:
            own = found.filter(pc.equal(found["role"], self.part.role))
            return own.take(
                np.flatnonzero(own["id"].to_numpy() % self._n_shards == self.part.index)
            )
        return found if role is None else found.filter(pc.equal(found["role"], role))

    def vectors(self, name: str, role: str) -> Vectors:
        found = self._tables[name]
        found = found.filter(pc.equal(found["role"], role))
        return Vectors(found["id"].to_numpy(), matrix_of(found["vector"]))

    def run(self, stage: Any) -> pa.Table:
        """The merged rows of all shards of examples; `facts` holds the details of each."""
        self.part = Part("", 0)
        self.opened = stage.open(self) if hasattr(stage, "open") else None
        (spec,) = stage.writes
        parts, self.facts = [], []
        for index in range(self._n_shards):
            self.part = Part("example", index)
            batches = [batch for _, batch in stage.compute(self)]
            parts.append(spec.check(pa.Table.from_batches(batches, spec.schema)))
            self.facts.append(dict(stage.details(self)) if hasattr(stage, "details") else {})
        merged = [batch for _, batch in stage.merge({spec.name: parts})]
        return spec.check(pa.Table.from_batches(merged, spec.schema))


def vector_table(
    examples: torch.Tensor, queries: torch.Tensor, column: str = "vector", **more: str
) -> pa.Table:
    """Rows with ids from 0 for examples and from 1000 for queries, the last ones first."""
    rows = torch.cat([examples, queries]).numpy().astype(np.float32)[::-1]
    flat = pa.array(np.ascontiguousarray(rows).reshape(-1))
    ids = np.concatenate([np.arange(len(examples)), 1000 + np.arange(len(queries))])[::-1]
    roles = ["query"] * len(queries) + ["example"] * len(examples)
    constants = {name: [value] * len(ids) for name, value in more.items()}
    vectors = pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])
    return pa.table({"id": np.ascontiguousarray(ids), "role": roles, **constants, column: vectors})


@pytest.fixture(scope="session")
def memory() -> type[MemoryInputs]:
    return MemoryInputs


@pytest.fixture(scope="session")
def sharded() -> type[ShardedInputs]:
    return ShardedInputs


@pytest.fixture(scope="session")
def rows() -> Callable[..., pa.Table]:
    return vector_table


@pytest.fixture(scope="session")
def probed() -> Callable[..., ShardedInputs]:
    """`probed(embeddings, answers, n_queries)`: tables, and a probe fitted on all but the last.

    Those are the queries, without an answer. Integer answers are labels, others targets.
    """

    def make(
        embeddings: torch.Tensor, answers: torch.Tensor, n_queries: int, **fields: Any
    ) -> ShardedInputs:
        n = len(embeddings) - n_queries
        ids = np.concatenate([np.arange(n), 1000 + np.arange(n_queries)])
        roles = ["example"] * n + ["query"] * n_queries
        known = pa.array([*answers[:n].tolist(), *[None] * n_queries])
        is_regression = answers.is_floating_point()
        name = "target" if is_regression else "label"
        told = {"label": {"task": "regression" if is_regression else "classification"}}
        told["label"]["classes"] = [] if is_regression else [str(c) for c in set(answers.tolist())]
        tables = {"label": pa.table({"id": ids, "role": roles, name: known})}
        tables["embedding"] = vector_table(embeddings[:n], embeddings[n:])
        fit_on = ShardedInputs(tables, told)
        fit_on.part = Part("", 0)
        stage = Probe(**fields)
        probe = MemoryInputs.run(fit_on, stage)
        told["probe"] = dict(stage.details(fit_on))
        return ShardedInputs({**tables, "probe": probe}, told)

    return make


@pytest.fixture(scope="session")
def score_matrix() -> Callable[[pa.Table, int, int], np.ndarray]:
    """Scores (queries, examples) of rows that name all pairs; their parts are checked."""

    def read(found: pa.Table, n_queries: int, n_examples: int) -> np.ndarray:
        assert found.num_rows == n_queries * n_examples
        query, example = found["query_id"].to_numpy() - 1000, found["example_id"].to_numpy()
        scores, own = np.full((2, n_queries, n_examples), np.nan)
        scores[query, example] = found["score"]
        own[query, example] = found["global_score"]
        product = found["global_score"].to_numpy() * found["local_score"].to_numpy()
        np.testing.assert_allclose(product, found["score"], rtol=1e-14, atol=0)
        assert (own >= 0).all()
        assert (own == own[0]).all()
        return scores

    return read


@pytest.fixture
def text() -> pa.Table:
    # Ids out of order: rows must keep theirs, wherever batching puts them.
    ids = [30, 10, 60, 20, 70, 50, 40]
    texts, pairs = zip(*ROWS, strict=True)
    return pa.table(
        {
            "id": pa.array(ids),
            "role": ["example"] * len(ids),
            "text": list(texts),
            "text_b": pa.array(pairs, pa.string()),
        }
    )


@pytest.fixture
def label(text: pa.Table) -> pa.Table:
    labels = pa.array([0, 1, 2, 1, 0, 2, 1])
    columns = {"id": text["id"], "role": text["role"], "label": labels, "true_label": labels}
    return pa.table(columns)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 2 layers, without a head."""
    return _save(tmp_path_factory.mktemp("encoder"), BertModel)


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a head of 3 classes."""
    return _save(tmp_path_factory.mktemp("checkpoint"), BertForSequenceClassification)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`saved("llama", "CausalLM")`: a folder with that model of 2 layers, and its tokenizer."""

    @functools.cache
    def save(kind: str, task: str = "", **more: Any) -> Path:
        folder = tmp_path_factory.mktemp(f"{kind}{task}")
        tokenizer = TOKENIZERS[kind]()
        tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in SPECIAL}
        config = transformers.AutoConfig.for_model(
            kind, **SIZES[kind], **tokens, vocab_size=len(tokenizer), **{"num_labels": 3, **more}
        )
        loader = getattr(transformers, f"AutoModel{f'For{task}' if task else ''}")
        logging.disable_progress_bar()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = loader.from_config(config)
            # Biases and norms that differ from what they begin with.
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter += 0.1 * torch.randn_like(parameter)
            network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


Measured = Callable[[torch.Tensor, int], torch.Tensor]
"""From the outputs of one row, and the row's place in the text, to the number to differentiate."""


@pytest.fixture(scope="session")
def loop_gradients() -> Callable[..., np.ndarray]:
    return _by_loop


@pytest.fixture(scope="session")
def func_gradients() -> Callable[..., np.ndarray]:
    return _by_func


def _by_loop(
    measurement: Measurement, text: pa.Table, measured: Measured, trained: Trained | None = None
) -> np.ndarray:
    """Gradients by autograd, a batch of one at a time, float64, (rows, weights), in text order."""
    network = copy.deepcopy(measurement.network).double()
    layers = _weights(network, trained)
    for weight in layers:
        weight.requires_grad_()
    found = []
    for row in range(text.num_rows):
        tokens = measurement.tokenise(text.slice(row, 1))
        outputs = network(**measurement.batch(tokens, np.array([0])))[0]
        number = measured(outputs, row)
        gradients = torch.autograd.grad(number, list(layers), materialize_grads=True)
        found.append(_flat(gradients, list(layers.values())))
    return np.stack(found)


def _by_func(
    measurement: Measurement, text: pa.Table, measured: Measured, trained: Trained | None = None
) -> np.ndarray:
    """The same by `torch.func`, of one padded batch."""
    network = copy.deepcopy(measurement.network).double()
    layers = _weights(network, trained)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    tokens = measurement.tokenise(text)
    batch = measurement.batch(tokens, np.arange(text.num_rows))

    def numbers(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        outputs = torch.func.functional_call(network, weights, (), batch)
        return torch.stack([measured(output, row) for row, output in enumerate(outputs)])

    weights = {names[id(weight)]: weight.detach() for weight in layers}
    # One row of the Jacobian at a time: attention has no batched backward pass.
    jacobian = torch.func.jacrev(numbers, chunk_size=1)(weights)
    return np.stack(
        [
            _flat([j[row] for j in jacobian.values()], list(layers.values()))
            for row in range(len(text))
        ]
    )


def _weights(network: torch.nn.Module, trained: Trained | None) -> dict[torch.nn.Parameter, bool]:
    """Weights of the trained layers, each once, and whether they are (inputs, outputs)."""
    layers = trained_layers(network, trained or Trained())
    return {layer.weight: isinstance(layer, Conv1D) for layer in layers.values()}


def _flat(gradients: Any, is_transposed: list[bool]) -> np.ndarray:
    parts = [
        (g.T if transposed else g).flatten()
        for g, transposed in zip(gradients, is_transposed, strict=True)
    ]
    return torch.cat(parts).detach().double().numpy()


CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% if m.role == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _byte_pairs(first: str, last: str, **special: str) -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE that knows the words of `ROWS`, with `first` and `last` around a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<s>", "</s>", "<pad>", "<mask>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [f" {text} {pair or ''} great terrible" for text, pair in ROWS] * 3
    tokenizer.train_from_iterator(texts, trainer)
    around = f"{first} $A {last}".strip()
    ids = [(token, tokenizer.token_to_id(token)) for token in (first, last) if token]
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=around, pair=f"{around} {around.replace('A', 'B')}", special_tokens=ids
            ),
        ]
    )
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=160,
        chat_template=CHAT,
        **special,
    )
    return made


SPECIAL = ("pad", "bos", "eos")
TOKENIZERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: _word_pieces(),
    "distilbert": lambda: _word_pieces(),
    "roberta": lambda: _byte_pairs(
        "<s>", "</s>", bos_token="<s>", eos_token="</s>", pad_token="<pad>", mask_token="<mask>"
    ),
    "gpt2": lambda: _byte_pairs("", "", bos_token="</s>", eos_token="</s>", pad_token="<pad>"),
    "llama": lambda: _byte_pairs("<s>", "", bos_token="<s>", eos_token="</s>", pad_token="<pad>"),
}
_ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 170,
    "initializer_range": 0.2,
}
SIZES: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "roberta": {**_ENCODER, "type_vocab_size": 1},
    "distilbert": {
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 40,
        "max_position_embeddings": 160,
        "initializer_range": 0.2,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 160, "initializer_range": 0.2},
    "llama": {**_ENCODER, "num_key_value_heads": 2, "max_position_embeddings": 160},
}


def _word_pieces() -> Any:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"bc.:", "it", "great"]
    return BertTokenizer(
        vocab={word: at for at, word in enumerate(vocabulary)}, model_max_length=160
    )


def _save(folder: Path, network_class: Any) -> Path:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    # Weights of this size make every layer's gradient matter.
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=160,
        initializer_range=0.2,
        num_labels=3,
    )
    tokenizer = BertTokenizer(
        vocab={word: at for at, word in enumerate(vocabulary)}, model_max_length=160
    )
    logging.disable_progress_bar()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
