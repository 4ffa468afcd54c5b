"""Models that pass the check before the first shard, and what is refused there, in words."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from runs import check_grammar
from safetensors.torch import load_file, save_file

import stages.model.heads.checkpoint
from stages.model.check import check_model, refuse_unequal, tolerance
from stages.model.pretrained import load_tokenizer, load_trunk, longest_row
from stages.model.spec import ModelSpec, Prompt
from stages.stage import ConfigError, ModelError

MASKED, CAUSAL = (Prompt(f"{{text}} It was{mask}", ("good", "bad")) for mask in (" {mask}.", ""))
MODELS: list[tuple[str, str, dict[str, Any], str]] = [
    *((kind, "", {}, "text") for kind in ("bert", "distilbert", "roberta", "gpt2", "t5", "bart")),
    ("xlnet", "", {}, "text"),
    ("llama", "", {}, "messages"),
    ("t5", "", {"head": "random", "num_labels": 2}, "text"),
    *(
        (kind, "SequenceClassification", {"head": "checkpoint"}, "text")
        for kind in ("bert", "roberta", "gpt2", "llama", "bart")
    ),
    ("roberta", "MaskedLM", {"head": "label_words", "prompt": MASKED}, "text"),
    ("llama", "CausalLM", {"head": "label_words", "prompt": CAUSAL}, "text"),
    ("gpt2", "CausalLM", {"head": "completion"}, "prompt_completion"),
    ("llama", "CausalLM", {"head": "completion"}, "messages"),
    ("bert", "QuestionAnswering", {"head": "span"}, "text"),
]


@pytest.fixture
def copied(saved: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """`copied("llama", "CausalLM")`: a copy of that model to spoil."""

    def copy(kind: str, task: str = "", **more: Any) -> Path:
        return Path(shutil.copytree(saved(kind, task, **more), tmp_path / "model"))

    return copy


def edit(path: Path, **changes: Any) -> None:
    """Sets values in a JSON file, and takes those out that are None."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def refused(spec: ModelSpec, form: str = "text") -> str:
    """What the check says of a model that does not pass."""
    with pytest.raises((ModelError, ConfigError)) as raised:
        check_model(spec, form)
    check_grammar(str(raised.value))
    return str(raised.value)


@pytest.mark.parametrize(("kind", "task", "fields", "form"), MODELS)
def test_sound_models_of_every_kind_pass(
    saved: Any, kind: str, task: str, fields: Any, form: str
) -> None:
    check_model(ModelSpec(str(saved(kind, task)), max_length=40, **fields), form)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_states_of_an_encoder_decoder_are_those_of_its_encoder(saved: Any, kind: str) -> None:
    spec = ModelSpec(str(saved(kind)))
    ids = torch.tensor([[0, 9, 8, 7, 1]])
    whole = transformers.AutoModel.from_pretrained(spec.path).eval()
    with torch.no_grad():
        wanted = whole(input_ids=ids, decoder_input_ids=ids[:, :2]).encoder_last_hidden_state
        found = load_trunk(spec).eval()(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, wanted)


def test_weights_in_bfloat16_are_read_in_float32(saved: Any, tmp_path: Path) -> None:
    half = transformers.AutoModel.from_pretrained(saved("bert"), dtype=torch.bfloat16)
    half.save_pretrained(tmp_path)
    load_tokenizer(ModelSpec(str(saved("bert")))).save_pretrained(tmp_path)
    spec = ModelSpec(str(tmp_path), max_length=40)
    trunk = load_trunk(spec)
    assert {p.dtype for p in trunk.parameters()} == {torch.float32}
    check_model(spec, "text")


def test_padding_that_a_classifier_takes_for_text_is_told_apart(
    copied: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied("llama", "SequenceClassification")
    # Another token than the tokenizer pads with.
    edit(folder / "config.json", pad_token_id=1)
    spec = ModelSpec(str(folder), head="checkpoint", max_length=40)
    check_model(spec, "text")
    monkeypatch.setattr(stages.model.heads.checkpoint, "pad_with", lambda *_: None)
    assert "reads its padding" in refused(spec)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("has_token", [False, True])
@pytest.mark.parametrize("has_id", [False, True])
def test_a_classifier_reads_its_last_token_whatever_pads_it(
    copied: Any, kind: str, has_token: bool, has_id: bool
) -> None:
    folder = copied(kind, "SequenceClassification")
    if not has_token:
        edit(folder / "tokenizer_config.json", pad_token=None)
    edit(folder / "config.json", pad_token_id=1 if has_id else None)
    spec = ModelSpec(str(folder), head="checkpoint", max_length=40)
    from memory_inputs import MemoryInputs

    from stages.model.measurement import load_measurement

    measurement = load_measurement(spec, MemoryInputs({}))
    tokens = measurement.tokenise(measurement.random_text(2, 5, 0))
    tokens.columns["input_ids"][0] = tokens.columns["input_ids"][0][:3]
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    network.config.pad_token_id = None
    with torch.no_grad():
        found = measurement.outputs(measurement.batch(tokens, torch.arange(2).numpy()))
        for row, ids in enumerate(tokens.columns["input_ids"]):
            # The definition: the logits at the row's last token.
            alone = network(input_ids=torch.tensor([ids])).logits[0]
            torch.testing.assert_close(found[row], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reads_bytes", [True, False])
def test_one_token_for_all_that_is_special_pads_what_knows_every_byte(
    copied: Any, reads_bytes: bool
) -> None:
    folder = copied("gpt2", "SequenceClassification")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] == "</s>"]
    if not reads_bytes:
        words = [w for w in tokenizer["model"]["vocab"] if w.isalpha() and w.isascii()]
        known = {w: i for i, w in enumerate(["<s>", "</s>", *words])}
        tokenizer["model"] = {"type": "WordLevel", "vocab": known, "unk_token": "</s>"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    # As GPT-2: no padding, and one token for beginning, end and what is unknown.
    edit(folder / "tokenizer_config.json", pad_token=None, unk_token="</s>", bos_token="</s>")
    spec = ModelSpec(str(folder), head="checkpoint", max_length=40)
    if reads_bytes:
        check_model(spec, "text")
    else:
        assert "found no padding token" in refused(spec)


def test_an_output_layer_that_cannot_be_cut_is_refused(saved: Any) -> None:
    folder = saved("mobilebert", "MaskedLM")
    spec = ModelSpec(str(folder), head="label_words", prompt=MASKED, max_length=40)
    assert "cannot be cut down to the label words" in refused(spec)


def test_positions_that_begin_behind_the_padding(copied: Any) -> None:
    folder = copied("roberta", max_position_embeddings=60)
    edit(folder / "tokenizer_config.json", model_max_length=10**30)
    spec = ModelSpec(str(folder), max_length=60)
    trunk, tokenizer = load_trunk(spec), load_tokenizer(spec)
    # The tokenizer's padding is 2: of 60 rows of the table 3 to 59 are positions.
    assert longest_row(trunk, tokenizer) == 57
    trunk(input_ids=torch.full((1, 57), 9))
    with pytest.raises((IndexError, RuntimeError), match="out of bounds|out of range"):
        trunk(input_ids=torch.full((1, 58), 9))
    said = refused(spec)
    assert "max_length: 60" in said
    assert "at most 57" in said
    check_model(ModelSpec(str(folder), max_length=57), "text")


def test_a_token_that_the_model_does_not_know(copied: Any) -> None:
    folder = copied("bert")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    n_words = len(tokenizer)
    tokenizer.add_tokens(["zeugma"])
    tokenizer.save_pretrained(folder)
    said = refused(ModelSpec(str(folder), max_length=40))
    assert f"'zeugma' ({n_words})" in said
    assert f"{n_words} embeddings" in said


@pytest.mark.parametrize(
    ("change", "head", "shapes"),
    [
        ({"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}, "checkpoint", "(3"),
        ({"vocab_size": 400}, "probe", "(400, 32)"),
        ({"intermediate_size": 44}, "probe", "(44"),
    ],
)
def test_weights_of_other_shapes_than_the_config(
    copied: Any, change: Any, head: str, shapes: str
) -> None:
    folder = copied("bert", "SequenceClassification" if head == "checkpoint" else "")
    edit(folder / "config.json", **change)
    said = refused(ModelSpec(str(folder), head=head, max_length=40))
    assert "of shape" in said
    assert shapes in said
    assert "config.json" in said


def test_weights_that_give_no_numbers(copied: Any) -> None:
    folder = copied("bert")
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in weights if n.endswith("layer.1.output.dense.bias"))
    weights[name][3] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "not finite for 4 of 4 rows" in refused(ModelSpec(str(folder), max_length=40))


def test_the_tolerance_follows_from_the_type() -> None:
    assert tolerance(torch.float32) == pytest.approx(2**-11.5)
    assert tolerance(torch.bfloat16) == pytest.approx(2**-3.5)
    spec = ModelSpec("some/model")
    for dtype in (torch.float32, torch.bfloat16):
        row = torch.tensor([[1.0, -4.0]], dtype=dtype)
        limit = 4 * tolerance(dtype)
        refuse_unequal(spec, [row], [row + 0.9 * limit])
        with pytest.raises(ModelError, match=r"some/model: found outputs .* change by"):
            refuse_unequal(spec, [row], [row + 1.2 * limit])


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_lose_their_end_whatever_the_tokenizer_says(copied: Any, side: str) -> None:
    folder = copied("roberta")
    edit(folder / "tokenizer_config.json", truncation_side=side, padding_side=side)
    from stages.model.batches import tokenise

    tokenizer = load_tokenizer(ModelSpec(str(folder)))
    whole = tokenise(tokenizer, ["good film"], [None], 20).columns["input_ids"][0]
    long = ["good film " + "was " * 40]
    cut = tokenise(tokenizer, long, [None], len(whole)).columns["input_ids"][0]
    assert cut[:-2] == whole[:-2]
    assert cut[-1] == whole[-1]
