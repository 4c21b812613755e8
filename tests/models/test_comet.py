"""Kind `comet` against a writing of xCOMET's and CometKiwi's published predictions."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from comet_checkpoints import (
    KIWI,
    POSITIONS,
    SCALARS,
    TEXTS,
    XCOMET,
    head_tensors,
    publish,
    write,
    write_encoder,
)
from forking import run_forked
from pydantic import ValidationError
from scoring import load, score
from tolerance import computed, in_bfloat16

from alarm_models.errors import CheckpointError, RecipeError
from alarm_models.modeling.comet import CometForm, _CometHead
from alarm_models.modeling.comet_conversion import convert
from alarm_models.recipe.from_checkpoint import recipe_of_checkpoint
from alarm_models.recipe.specs import CometSpec
from alarm_models.types import Sample

pytestmark = pytest.mark.numeric

_SAMPLES = [
    ("Two fishermen mend their nets.", "Zwei Fischer flicken ihre Netze.", "Zwei Fischer flicken."),
    ("A red kite rises.", "Ein roter Drache steigt 🪁 auf.  ", "Ein roter Milan steigt auf."),
    ("", "", ""),
    (TEXTS[0] * 3, TEXTS[1] * 3, TEXTS[1]),
]


class Card:
    """The published prediction of one sample, from the encoder and the published tensors."""

    def __init__(self, folder: Path, encoder: Any, heads: Any, weights: Sequence[float]) -> None:
        self.tokenizer = hf.PreTrainedTokenizerFast.from_pretrained(folder)
        self.encoder, self.heads = encoder, heads
        self.weights = torch.tensor(weights) * 0.9
        self.is_normed = False

    def ids(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        made = self.tokenizer(
            text, truncation=True, max_length=POSITIONS - 2, return_offsets_mapping=True
        )
        return made["input_ids"], made["offset_mapping"]

    def joined(self, *texts: str) -> list[int]:
        parts = [self.ids(text)[0][1:-1] for text in texts]
        whole = [0, *parts[0], 2]
        for part in parts[1:]:
            whole += [2, *part, 2]
        return whole[:POSITIONS]

    @torch.no_grad()
    def forward(self, ids: list[int]) -> tuple[float, torch.Tensor | None]:
        layers = self.encoder(torch.tensor([ids]), output_hidden_states=True).hidden_states
        if self.is_normed:
            layers = [
                (one - one.mean()) / (one.var(unbiased=False) + 1e-12).sqrt() for one in layers
            ]
        x = sum(w * one[0, 0] for w, one in zip(self.weights, layers, strict=True))
        for at in (0, 3, 6):
            x = self.heads[f"estimator.ff.{at}.weight"] @ x + self.heads[f"estimator.ff.{at}.bias"]
            x = x.tanh() if at < 6 else x
        tags = None
        if "hidden2tag.weight" in self.heads:
            tags = layers[2][0] @ self.heads["hidden2tag.weight"].T + self.heads["hidden2tag.bias"]
        return x.item(), tags

    def spans(self, probabilities: torch.Tensor, places: Any) -> list[tuple[int, int, str]]:
        """Decode as published: a span ends before an O, and keeps its first severity."""
        names = ("O", "minor", "major", "critical")
        found: list[tuple[int, int, str]] = []
        current: list[Any] | None = None
        for row, (start, end) in zip(probabilities.tolist(), places, strict=False):
            name = names[max(range(4), key=row.__getitem__)]
            if name != "O" and current is None:
                current = [start, end, name]
            elif name != "O" and current is not None:
                current[1] = end
            elif current is not None:
                found.append((current[0], current[1], current[2]))
                current = None
        return found


# Of 0.4, 0.9, -1 and 0.7, sparsemax leaves out -1: tau is (2.0 - 1) / 3.
_SPARSE = (0.4 - 1 / 3, 0.9 - 1 / 3, 0.0, 0.7 - 1 / 3)


def _samples() -> list[Sample]:
    return [
        Sample("Translate.", mt, fields={"source": src, "reference": ref})
        for src, mt, ref in _SAMPLES
    ]


@pytest.mark.parametrize("is_xl", [False, True])
def test_xcomet_gives_the_published_score_and_error_spans_in_one_pass(
    tmp_path: Path, is_xl: bool
) -> None:
    folder = tmp_path / "xcomet"
    encoder, heads = write(folder, XCOMET, tags=4, is_xl=is_xl)
    card = Card(folder, encoder, heads, _SPARSE)
    keys = recipe_of_checkpoint(str(folder)).table["models"]["rm"]
    model = load(CometSpec.model_validate(keys))
    got = score(model, _samples())
    all_spans = []
    for (src, mt, ref), one in zip(_SAMPLES, got, strict=True):
        inputs = [card.joined(mt, src), card.joined(mt, ref), card.joined(mt, src, ref)]
        scores, tags = zip(*map(card.forward, inputs), strict=True)
        _, places = card.ids(mt)
        weighed = zip((0.1667, 0.3333, 0.5), tags, strict=True)
        mixed = sum(w * tag[: len(places)].softmax(-1) for w, tag in weighed if tag is not None)
        assert isinstance(mixed, torch.Tensor)
        spans = card.spans(mixed, places)
        worth = {"minor": 1, "major": 5, "critical": 10}
        mqm = (25 - min(sum(worth[name] for *_, name in spans), 25)) / 25
        shares = zip((0.12, 0.33, 0.33), scores, strict=True)
        value = sum(w * min(one, 1.0) for w, one in shares) + 0.22 * mqm
        assert one.value == computed(value)
        assert one.outputs is not None
        assert list(one.outputs) == ["src", "ref", "unified", "mqm"]
        assert list(one.outputs.values()) == [computed(each) for each in (*scores, mqm)]
        assert one.segments is not None
        assert [(*each.span, each.label) for each in one.segments] == spans
        assert [each.score for each in one.segments] == [-float(worth[name]) for *_, name in spans]
        all_spans += spans
        assert one.num_tokens == sum(map(len, inputs))
    assert len({name for *_, name in all_spans}) > 1
    assert [one.truncated for one in got] == [False, False, False, True]


def test_xcomet_without_a_reference_reads_the_source_alone(tmp_path: Path) -> None:
    folder = tmp_path / "xcomet"
    encoder, heads = write(folder, XCOMET, tags=4)
    card = Card(folder, encoder, heads, _SPARSE)
    model = load(CometSpec(checkpoint=str(folder)))
    for (src, mt, _), one in zip(_SAMPLES, score(model, _samples()), strict=True):
        value, tags = card.forward(card.joined(mt, src))
        assert tags is not None
        spans = card.spans(tags, card.ids(mt)[1])
        worth = {"minor": 1, "major": 5, "critical": 10}
        mqm = (25 - min(sum(worth[name] for *_, name in spans), 25)) / 25
        assert one.value == computed(0.78 * min(value, 1.0) + 0.22 * mqm)


def test_cometkiwi_gives_the_published_score(tmp_path: Path) -> None:
    folder = tmp_path / "kiwi"
    encoder, heads = write(folder, KIWI, tags=0)
    card = Card(folder, encoder, heads, torch.tensor(SCALARS).softmax(0).tolist())
    card.is_normed = True
    keys = recipe_of_checkpoint(str(folder)).table["models"]["rm"]
    got = score(load(CometSpec.model_validate(keys)), _samples())
    for (src, mt, _), one in zip(_SAMPLES, got, strict=True):
        value, _ = card.forward(card.joined(mt, src))
        assert one.value == computed(value)
        assert one.segments is None
    with pytest.raises(RecipeError, match="does not read a reference"):
        load(CometSpec(checkpoint=str(folder), reference="{reference}"))


@torch.inference_mode()
def test_normalized_layers_in_float16_do_not_overflow() -> None:
    # 64 tokens of 1024 numbers: the largest float16 is 65504.
    form = CometForm("unified_metric", "Tanh", None, "mix", "sparsemax", True, 1, ("mt", "src"))
    torch.manual_seed(0)
    head = _CometHead(form, torch.nn.Linear(1024, 1), None, torch.tensor([0.3, 0.7]))
    layers = [torch.randn(1, 64, 1024).half() for _ in range(2)]
    mask = torch.ones(1, 64, dtype=torch.long)
    wanted = head.scores([one.float() for one in layers], mask).item()
    # Float16 has more digits than bfloat16, whose tolerance this is.
    assert head.half().scores(layers, mask).item() == in_bfloat16(wanted)


def test_severities_are_what_the_recipe_says(tmp_path: Path) -> None:
    folder = tmp_path / "xcomet"
    write(folder, XCOMET, tags=4)
    keys = {"checkpoint": str(folder), "severities": {"minor": -0.5, "major": -2, "critical": -3}}
    got = score(load(CometSpec.model_validate(keys)), _samples())
    worth = {"minor": -0.5, "major": -2.0, "critical": -3.0}
    found = [one for each in got for one in each.segments or ()]
    assert found
    assert [one.score for one in found] == [worth[str(one.label)] for one in found]


def test_missing_field_fails_its_sample_alone(tmp_path: Path) -> None:
    folder = tmp_path / "kiwi"
    write(folder, KIWI, tags=0)
    model = load(CometSpec(checkpoint=str(folder)))
    good, bad = model.prepare([_samples()[0], Sample("Translate.", "Ein Milan.")])
    assert "source" in getattr(bad, "message", "")
    assert len(model.forward([good])) == 1  # type: ignore[list-item]


def test_objects_in_a_checkpoint_are_not_unpickled(tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder")
    args = argparse.Namespace(lr=1e-5)
    source = publish(tmp_path / "published", XCOMET, head_tensors(4, SCALARS), args=args)
    with pytest.raises(CheckpointError, match=r"argparse.Namespace.*not unpickled"):
        convert(source, str(tmp_path / "encoder"), tmp_path / "out")


def test_other_classes_are_refused_by_name(tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder")
    hparams = {**XCOMET, "class_identifier": "regression_metric"}
    source = publish(tmp_path / "published", hparams, head_tensors(4, SCALARS))
    with pytest.raises(CheckpointError, match="'regression_metric': kind `comet` reads"):
        convert(source, str(tmp_path / "encoder"), tmp_path / "out")


def test_unconverted_checkpoint_is_refused_with_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    write_encoder(folder).save_pretrained(folder)
    with pytest.raises(CheckpointError, match="comet_conversion"):
        load(CometSpec(checkpoint=str(folder)))


@pytest.mark.parametrize("key", [{"head": "score"}, {"adapter": "x"}, {"truncation": "right"}])
def test_keys_of_other_kinds_are_refused(key: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="remove"):
        CometSpec.model_validate({"checkpoint": "x", **key})


def test_command_converts_a_checkpoint(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    inside = {f"encoder.model.{key}": one for key, one in encoder.state_dict().items()}
    source = publish(tmp_path / "published", XCOMET, inside | head_tensors(4, SCALARS))
    module = "alarm_models.modeling.comet_conversion"
    program = f"import runpy; runpy.run_module({module!r}, run_name='__main__')"
    folders = (str(one) for one in (source, tmp_path / "encoder", tmp_path / "out"))
    code, _, err = run_forked(program, *folders)
    assert code == 0, err
    assert json.loads((tmp_path / "out" / "config.json").read_text())["comet"]["word_layer"] == 2
