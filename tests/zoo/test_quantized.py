"""Quantized checkpoints are served with the scores of the weights that they stand for.

The weights of the plain checkpoint are small integers times powers of two, by groups of 16 columns,
which each form can store without loss: the packers here write them from the forms' descriptions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tolerance import computed

from alarm_models.errors import CheckpointError
from alarm_models.modeling.inspection import inspect_folder
from alarm_models.recipe.loader import load_recipe
from zoo import builders, cards
from zoo.cases import load, scores

pytestmark = pytest.mark.numeric

_GROUP = 16
_SAMPLES = {name: cards.ALL[name] for name in ("single", "unicode", "turns")}

Tensors = dict[str, torch.Tensor]
#: Writes a weight from its integers and their scales, both ``[out, in]``.
Packer = Callable[[torch.Tensor, torch.Tensor], Tensors]


def _integers(rows: int, columns: int) -> torch.Tensor:
    return torch.randint(-4, 5, (rows, columns), dtype=torch.int32)


def _scales(rows: int, columns: int) -> torch.Tensor:
    by_group = torch.arange(rows)[:, None] + torch.arange(columns // _GROUP)[None, :]
    return (2.0 ** -(by_group % 3 + 2.0)).repeat_interleave(_GROUP, 1)


def _words(values: torch.Tensor, bits: int = 4) -> torch.Tensor:
    """Pack the last dimension, the first value in the lowest bits of a word."""
    grouped = values.long().unflatten(-1, (-1, 32 // bits))
    words = sum(grouped[..., index] << (bits * index) for index in range(32 // bits))
    return torch.as_tensor(words).to(torch.int32)


def _by_group(scales: torch.Tensor) -> torch.Tensor:
    return scales[:, ::_GROUP]


def _zeros(scales: torch.Tensor) -> torch.Tensor:
    """Zero points from 4 to 11, by row and group."""
    rows, groups = _by_group(scales).shape
    return (torch.arange(rows)[:, None] + torch.arange(groups)[None, :]) % 8 + 4


def _fp8_blocks(k: torch.Tensor, scales: torch.Tensor) -> Tensors:
    rows, columns = k.shape
    by_block = 2.0 ** torch.arange(rows * columns // 256).reshape(rows // 16, columns // 16).neg()
    spread = by_block.repeat_interleave(16, 0).repeat_interleave(16, 1)
    values = (k * scales / spread).to(torch.float8_e4m3fn)
    return {"weight": values, "weight_scale_inv": by_block}


def _fp8_tensor(k: torch.Tensor, scales: torch.Tensor) -> Tensors:
    values = (k * scales * 32).to(torch.float8_e4m3fn)
    return {
        "weight": values,
        "weight_scale": torch.tensor(1 / 32),
        "input_scale": torch.tensor(0.5),
    }


def _int8_channel(k: torch.Tensor, scales: torch.Tensor) -> Tensors:
    smallest = scales.amin(1, keepdim=True)
    values = (k * scales / smallest).to(torch.int8)
    return {"weight": values, "weight_scale": smallest.to(torch.bfloat16)}


def _packed(k: torch.Tensor, scales: torch.Tensor) -> Tensors:
    zeros = _zeros(scales)
    values = k + zeros.repeat_interleave(_GROUP, 1)
    return {
        "weight_packed": _words(values),
        "weight_scale": _by_group(scales),
        "weight_zero_point": _words(zeros.T).T,
        "weight_shape": torch.tensor(k.shape),
    }


def _gptq(k: torch.Tensor, scales: torch.Tensor, bits: int = 4, offset: int = 1) -> Tensors:
    """Groups are in reverse, as `desc_act` may have them."""
    zeros = _zeros(scales).flip(1)
    groups = zeros.shape[1] - 1 - torch.arange(k.shape[1]) // _GROUP
    values = k + zeros[:, groups]
    return {
        "qweight": _words(values, bits).T,
        "qzeros": _words(zeros.T - offset, bits),
        "scales": _by_group(scales).flip(1).T.half(),
        "g_idx": groups.int(),
    }


def _gptq_v2(k: torch.Tensor, scales: torch.Tensor) -> Tensors:
    return _gptq(k, scales, bits=8, offset=0)


def _awq(k: torch.Tensor, scales: torch.Tensor) -> Tensors:
    zeros = _zeros(scales)
    values = k + zeros.repeat_interleave(_GROUP, 1)
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])  # the column of each nibble

    def packed(rows: torch.Tensor) -> torch.Tensor:
        return _words(rows.unflatten(-1, (-1, 8))[..., order].flatten(-2))

    return {
        "qweight": packed(values.T),
        "qzeros": packed(zeros.T),
        "scales": _by_group(scales).T.half(),
    }


def _nf4(k: torch.Tensor, scales: torch.Tensor, **more: Any) -> Tensors:
    """The map of the file need not be NormalFloat's: here it is -8/8 to 7/8."""
    indices = (k + 8).flatten().to(torch.uint8)
    state = {"quant_type": "nf4", "blocksize": _GROUP, "dtype": "float32", "shape": list(k.shape)}
    text = json.dumps({**state, **more}).encode()
    return {
        "weight": (indices[0::2] << 4 | indices[1::2]).unsqueeze(1),
        "weight.absmax": (_by_group(scales) * 8).flatten(),
        "weight.quant_map": torch.arange(-8, 8) / 8,
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(text), dtype=torch.uint8),
    }


def _nf4_nested(k: torch.Tensor, scales: torch.Tensor) -> Tensors:
    """Maxima are stored in 8 bits too: 0.25 of a map's value 4 to 16, less 1, and 1 added."""
    tensors = _nf4(k, scales, nested_blocksize=4, nested_dtype="float32", nested_offset=1.0)
    wanted = ((tensors["weight.absmax"] - 1.0) * 4 + 16).to(torch.uint8)
    more = {
        "weight.absmax": wanted,
        "weight.nested_absmax": torch.full((-(-len(wanted) // 4),), 0.25),
        "weight.nested_quant_map": torch.arange(256) - 16.0,
    }
    return tensors | more


def _int8_rows(k: torch.Tensor, scales: torch.Tensor) -> Tensors:
    smallest = scales.amin(1)
    values = (k * scales / smallest[:, None]).to(torch.int8)
    return {
        "weight": values,
        "SCB": smallest * 127,
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }


def _compressed(bits: int, form: str) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": _GROUP}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups,
            "ignore": ["score"]}  # fmt: skip


FORMS: dict[str, tuple[Packer, Mapping[str, Any] | None]] = {
    "fp8_blocks": (_fp8_blocks, {"quant_method": "fp8", "weight_block_size": [16, 16]}),
    "modelopt_fp8_without_a_configuration": (_fp8_tensor, None),
    "compressed_int8": (_int8_channel, _compressed(8, "int-quantized")),
    "compressed_int4": (_packed, _compressed(4, "pack-quantized")),
    "gptq_of_4_bits": (_gptq, {"quant_method": "gptq", "bits": 4, "group_size": _GROUP}),
    "gptq_v2_of_8_bits": (
        _gptq_v2,
        {"quant_method": "gptq", "bits": 8, "group_size": _GROUP, "checkpoint_format": "gptq_v2"},
    ),
    "awq": (_awq, {"quant_method": "awq", "bits": 4, "group_size": _GROUP, "version": "gemm"}),
    "bitsandbytes_nf4": (_nf4_nested, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "bitsandbytes_int8": (_int8_rows, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
}


class Plain:
    """The checkpoint that is quantized, and its scores by transformers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ids = {"pad_token_id": 0, "eos_token_id": 2}
        builders.write_classifier(folder, hf.Qwen2Config, builders.qwen_tokenizer, **ids)
        torch.manual_seed(3)
        self.tensors = load_file(folder / "model.safetensors")
        self.parts = {
            name.removesuffix("weight"): (_integers(*one.shape), _scales(*one.shape))
            for name, one in self.tensors.items()
            if name.endswith("_proj.weight")
        }
        for name, (k, scales) in self.parts.items():
            self.tensors[f"{name}weight"] = k * scales
        save_file(self.tensors, folder / "model.safetensors", metadata={"format": "pt"})
        card = cards.chat_classifier(folder)
        self.scores = {name: card(sent) for name, sent in _SAMPLES.items()}

    def quantize(self, folder: Path, packer: Packer, config: Mapping[str, Any] | None) -> None:
        """Write the checkpoint with its layers in another form."""
        builders.qwen_tokenizer(folder)
        (folder / "config.json").write_text((self.folder / "config.json").read_text())
        if config is not None:
            builders.edit_config(folder, quantization_config=dict(config))
        tensors = {
            name: one for name, one in self.tensors.items() if not name.endswith("_proj.weight")
        }
        for name, (k, scales) in self.parts.items():
            packed = packer(k, scales).items()
            tensors |= {name + part: one.contiguous() for part, one in packed}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Plain:
    return Plain(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("form", FORMS)
def test_quantized_checkpoint_has_the_scores_of_its_weights(
    plain: Plain, form: str, tmp_path: Path
) -> None:
    plain.quantize(tmp_path, *FORMS[form])
    model = load(tmp_path, {})
    got = scores(model, _SAMPLES)
    assert got == {name: computed(value) for name, value in plain.scores.items()}
    (note,) = (one for one in model.notes if "dequantized" in one)
    assert note.endswith("float32") or "input_scale) are not applied" in note


def test_quantized_checkpoint_without_a_recipe_is_a_classifier(
    plain: Plain, tmp_path: Path
) -> None:
    plain.quantize(tmp_path, *FORMS["gptq_of_4_bits"])
    (spec,) = load_recipe(f"checkpoint:{tmp_path}").models.values()
    assert spec.kind == "sequence"
    facts, original = inspect_folder(tmp_path), inspect_folder(plain.folder)
    assert set(facts.tensors) == set(original.tensors)
    down = "model.layers.0.mlp.down_proj.weight"
    assert facts.tensors[down].shape == original.tensors[down].shape


def test_quantized_head_and_dtype_of_the_recipe(plain: Plain, tmp_path: Path) -> None:
    plain.quantize(tmp_path, *FORMS["compressed_int8"])
    tensors = load_file(tmp_path / "model.safetensors")
    k, scales = _integers(1, builders.HIDDEN), _scales(1, builders.HIDDEN)
    tensors.pop("score.weight")
    tensors |= {f"score.{part}": one for part, one in _int8_channel(k, scales).items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    by_class = scores(load(tmp_path, {}), _SAMPLES)
    by_head = scores(load(tmp_path, {"head": "score"}), _SAMPLES)
    assert by_head == {name: computed(float(value)) for name, value in by_class.items()}
    model = load(tmp_path, {"dtype": "bfloat16"})
    assert any("compressed-tensors to bfloat16" in note for note in model.notes)


def test_tensor_beside_quantized_weights_is_not_dropped(plain: Plain, tmp_path: Path) -> None:
    plain.quantize(tmp_path, *FORMS["awq"])
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.bias"] = torch.ones(builders.HIDDEN)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"holds 1 tensor .*down_proj\.bias"):
        load(tmp_path, {})


def _without(packer: Packer, part: str) -> Packer:
    def packed(k: torch.Tensor, scales: torch.Tensor) -> Tensors:
        return {name: one for name, one in packer(k, scales).items() if name != part}

    return packed


def _nvfp4(k: torch.Tensor, scales: torch.Tensor) -> Tensors:
    return _fp8_tensor(k, scales) | {"weight_scale_2": torch.ones(1)}


def _short_scales(k: torch.Tensor, scales: torch.Tensor) -> Tensors:
    return _fp8_tensor(k, scales) | {"weight_scale": torch.ones(3)}


_AWQ = dict(FORMS["awq"][1] or {})
_GPTQ = dict(FORMS["gptq_of_4_bits"][1] or {})
REFUSED: dict[str, tuple[Packer, Mapping[str, Any] | None, str]] = {
    "gptq_of_3_bits": (_gptq, {**_GPTQ, "bits": 3}, "3 bits, and only 4 or 8 are read"),
    "gptq_in_marlins_form": (_gptq, {**_GPTQ, "checkpoint_format": "marlin"}, "'marlin' is not"),
    "awq_gemv": (_awq, {**_AWQ, "version": "gemv"}, "'gemv' is not read, only gemm"),
    "unknown_method": (_awq, {"quant_method": "aqlm"}, "the method aqlm is not read"),
    "packed_without_a_configuration": (_gptq, None, "no file says which"),
    "nvfp4": (_nvfp4, None, r"weight_scale_2 belongs to 4-bit floating point"),
    "fp8_without_scales": (_without(_fp8_tensor, "weight_scale"), None, "no tensor is its scale"),
    "awq_without_zeros": (_without(_awq, "qzeros"), _AWQ, "qweight, scales without qzeros"),
    "scales_that_do_not_fit": (_short_scales, None, r"scales \[3\] are of no block, row or group"),
    "state_that_is_no_json": (
        lambda k, scales: (
            _nf4(k, scales)
            | {"weight.quant_state.bitsandbytes__nf4": torch.zeros(8, dtype=torch.uint8)}
        ),
        {"quant_method": "bitsandbytes"},
        "bitsandbytes 4-bit .* JSONDecodeError",
    ),
}


@pytest.mark.parametrize("form", REFUSED)
def test_quantized_checkpoint_that_is_not_read_is_refused(
    plain: Plain, form: str, tmp_path: Path
) -> None:
    packer, config, says = REFUSED[form]
    plain.quantize(tmp_path, packer, config)
    with pytest.raises(CheckpointError, match=says) as refused:
        load(tmp_path, {})
    assert "remote" in str(refused.value)
    assert str(tmp_path) in str(refused.value)
