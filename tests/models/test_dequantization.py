"""Dequantization of each layout, on numbers that can be checked by hand."""

from __future__ import annotations

import json

import pytest
import torch

from alarm_models.errors import CheckpointError
from alarm_models.modeling.dequantization import dequantize
from alarm_models.modeling.quantization import Layout, PackedWeight

#: A word whose eight integers of 4 bits are 0 to 7, the first in the lowest bits.
_ASCENDING = 0x76543210


def _compute(layout: Layout, parts: dict[str, torch.Tensor], **more: object) -> list[list[float]]:
    packed = PackedWeight(layout, {role: role for role in parts}, **more)  # type: ignore[arg-type]
    rows: list[list[float]] = dequantize("w", packed, parts).tolist()
    return rows


def test_gptq_word_holds_a_column_of_inputs_and_zero_points_are_less_one() -> None:
    parts = {
        "qweight": torch.full((1, 8), _ASCENDING, dtype=torch.int32),
        "qzeros": torch.tensor([[0x77777777]], dtype=torch.int32),
        "scales": torch.tensor([[0.5] * 7 + [2.0]]),
    }
    first = [-4.0, -3.5, -3.0, -2.5, -2.0, -1.5, -1.0, -0.5]  # 0.5 * (q - 8)
    last = [-16.0, -14.0, -12.0, -10.0, -8.0, -6.0, -4.0, -2.0]
    assert _compute(Layout.GPTQ, parts, zero_offset=1) == [first] * 7 + [last]


def test_gptq_zero_point_of_fifteen_less_one_is_zero() -> None:
    parts = {
        "qweight": torch.full((1, 8), _ASCENDING, dtype=torch.int32),
        "qzeros": torch.tensor([[-1]], dtype=torch.int32),
        "scales": torch.ones(1, 8),
        "g_idx": torch.zeros(8, dtype=torch.int32),
    }
    assert _compute(Layout.GPTQ, parts, zero_offset=1)[0] == [0, 1, 2, 3, 4, 5, 6, 7]


def test_awq_word_holds_even_columns_of_outputs_first() -> None:
    parts = {
        "qweight": torch.tensor([[_ASCENDING], [0]], dtype=torch.int32),
        "qzeros": torch.zeros(1, 1, dtype=torch.int32),
        "scales": torch.full((1, 8), 0.5),
    }
    first_input = [row[0] for row in _compute(Layout.AWQ, parts)]
    assert first_input == [0.0, 2.0, 0.5, 2.5, 1.0, 3.0, 1.5, 3.5]


def test_packed_integers_are_stored_plus_half_their_range() -> None:
    parts = {
        "weight_packed": torch.tensor([[_ASCENDING]], dtype=torch.int32),
        "weight_scale": torch.tensor([[0.5, 2.0]]),
        "weight_shape": torch.tensor([1, 6]),
    }
    # q - 8, of which the first three have another scale than the last three
    assert _compute(Layout.PACKED_INTEGERS, parts) == [[-4.0, -3.5, -3.0, -10.0, -8.0, -6.0]]


def test_fp8_scales_are_of_blocks_that_the_last_rows_and_columns_need_not_fill() -> None:
    torch.manual_seed(0)
    weight = torch.randint(-8, 9, (5, 7)).float()
    scales = torch.tensor([[1.0, 2.0, 4.0], [0.5, 0.25, 8.0]])
    wanted = torch.empty(5, 7)
    for row in range(5):
        for column in range(7):
            wanted[row, column] = weight[row, column] * scales[row // 4, column // 3]
    parts = {"weight": weight.to(torch.float8_e4m3fn), "weight_scale_inv": scales}
    assert _compute(Layout.SCALED, parts, block=(4, 3)) == wanted.tolist()


def test_scale_in_bytes_of_no_type_is_a_power_of_two() -> None:
    parts = {
        "weight": torch.tensor([[1.0, 2.0, 3.0, 4.0]]).to(torch.float8_e4m3fn),
        "weight_scale": torch.tensor([[127, 129]], dtype=torch.uint8),  # 1 and 4
    }
    assert _compute(Layout.SCALED, parts) == [[1.0, 2.0, 12.0, 16.0]]


def test_bitsandbytes_4bit_byte_holds_the_first_value_in_its_higher_bits() -> None:
    state = json.dumps({"blocksize": 4, "shape": [2, 3]}).encode()
    parts = {
        "weight": torch.tensor([[0x1F], [0x20], [0x38]], dtype=torch.uint8),
        "absmax": torch.tensor([2.0, 4.0]),
        "quant_map": torch.arange(16) / 16,
        "state": torch.tensor(list(state), dtype=torch.uint8),
    }
    # 1, 15, 2, 0 times 2/16, then 3, 8 times 4/16
    assert _compute(Layout.BITSANDBYTES_4BIT, parts) == [[0.125, 1.875, 0.25], [0.0, 0.75, 2.0]]


def test_bitsandbytes_8bit_is_a_part_of_127_of_a_rows_maximum() -> None:
    parts = {
        "weight": torch.tensor([[127, -1], [2, 0]], dtype=torch.int8),
        "SCB": torch.tensor([127.0, 254.0]),
    }
    assert _compute(Layout.BITSANDBYTES_8BIT, parts) == [[127.0, -1.0], [4.0, 0.0]]


def test_group_that_no_scale_has_is_refused() -> None:
    parts = {
        "qweight": torch.zeros(1, 8, dtype=torch.int32),
        "qzeros": torch.zeros(1, 1, dtype=torch.int32),
        "scales": torch.ones(1, 8),
        "g_idx": torch.full((8,), 1, dtype=torch.int32),
    }
    with pytest.raises(CheckpointError, match="g_idx does not name one of 1 groups"):
        _compute(Layout.GPTQ, parts)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("blocksize", 0, "its blocksize is 0"),
        ("blocksize", 1 << 33, "its blocksize is 8589934592"),
        ("nested_blocksize", -1, "its nested_blocksize is -1"),
        ("shape", [float("inf")], "OverflowError"),
        (None, None, "TypeError"),
    ],
)
def test_bitsandbytes_state_of_no_matrix_is_refused(
    key: str | None, value: object, says: str
) -> None:
    state = {"blocksize": 4, "shape": [1, 4], "nested_blocksize": 4, "nested_offset": 0.0}
    text = json.dumps([] if key is None else {**state, key: value}).encode()
    parts = {
        "weight": torch.zeros(2, 1, dtype=torch.uint8),
        "absmax": torch.zeros(1, dtype=torch.uint8),
        "nested_absmax": torch.ones(1),
        "nested_quant_map": torch.ones(256),
        "quant_map": torch.arange(16) / 16,
        "state": torch.tensor(list(text), dtype=torch.uint8),
    }
    with pytest.raises(CheckpointError, match=says):
        _compute(Layout.BITSANDBYTES_4BIT, parts)


def test_weight_without_columns_is_refused() -> None:
    weight = torch.zeros(4, 0, dtype=torch.int8)
    with pytest.raises(CheckpointError, match=r"weight \[4, 0\].*ZeroDivisionError"):
        _compute(Layout.SCALED, {"weight": weight, "weight_scale": torch.ones(1)})
