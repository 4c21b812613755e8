"""Linear kernels: packed layers give the same products, and any model runs on them."""

import copy

import pytest
import torch
from tolerance import assert_computed, computed
from unusual import classifier, features, ids, network, plain

from alarm_models.modeling import backend_selection
from alarm_models.modeling.linear_kernels import (
    PACKED,
    PLAIN,
    PackedLinear,
    fastest_linear,
    measure_linear,
    pack_linears,
    unpack_linears,
)

pytestmark = pytest.mark.numeric


def linear(*, bias: bool = True) -> torch.nn.Linear:
    torch.manual_seed(1)
    return torch.nn.Linear(24, 40, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (0, 24), (2, 3, 24), (1, 300, 24)])
@torch.inference_mode()
def test_packed_linear_gives_the_products_of_linear(shape: tuple[int, ...], bias: bool) -> None:
    layer = linear(bias=bias)
    states = torch.randn(shape)
    assert_computed(PackedLinear(layer)(states), layer(states))


@torch.inference_mode()
def test_packed_linear_takes_states_that_are_not_contiguous() -> None:
    layer = linear()
    states = torch.randn(24, 7).t()
    assert_computed(PackedLinear(layer)(states), layer(states))


@torch.inference_mode()
def test_packed_weight_reads_and_unpacks_bit_for_bit() -> None:
    layer = linear()
    packed = PackedLinear(layer)
    assert torch.equal(packed.weight, layer.weight)
    unpacked = packed.unpacked()
    assert torch.equal(unpacked.weight, layer.weight)
    assert torch.equal(unpacked.bias, layer.bias)
    assert (unpacked.in_features, unpacked.out_features) == (24, 40)


def test_pack_linears_replaces_nested_layers_and_no_subclass() -> None:
    class Own(torch.nn.Linear):
        pass

    model = torch.nn.Sequential(linear(), torch.nn.Sequential(linear()), Own(2, 2))
    assert pack_linears(model) == 2
    assert [type(one) for one in model] == [PackedLinear, torch.nn.Sequential, Own]
    assert unpack_linears(model) == 2
    assert type(model[1][0]) is torch.nn.Linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_kernels_on_any_processor_are_measured_or_left_alone(dtype: torch.dtype) -> None:
    num_threads = torch.get_num_threads()
    assert fastest_linear(dtype, num_threads) in (PLAIN, PACKED)
    assert measure_linear(dtype, num_threads) in (PLAIN, PACKED)


def test_fastest_linear_if_deterministic_is_not_measured() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        assert fastest_linear.__wrapped__(torch.float32, 1) == PLAIN
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", ["llama-dynamic", "electra", "phimoe", "t5", "opt"])
def test_select_backend_on_packed_layers_gives_transformers_scores(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = classifier(name)
    expected = copy.deepcopy(model)
    monkeypatch.setattr(backend_selection, "fastest_linear", lambda *_: PACKED)
    served = network(model)
    assert "linear=onednn-packed" in served.execution
    assert any(isinstance(one, PackedLinear) for one in model.modules())
    samples = [
        ids(length, seed, prompt) for seed, (length, prompt) in enumerate([(40, 30), (35, 30)])
    ]
    outputs = served.forward(features(served, samples))
    assert [one.item() for one in outputs] == computed([plain(expected, one) for one in samples])


def test_select_backend_if_a_model_fails_on_packed_layers_leaves_it_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend_selection, "fastest_linear", lambda *_: PACKED)

    def broken(self: PackedLinear, states: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(PackedLinear, "forward", broken)
    model = classifier("opt")
    expected = copy.deepcopy(model)
    served = network(model)
    assert "linear=torch" in served.execution
    outputs = served.forward(features(served, [ids(20, 1, 0)]))
    assert [one.item() for one in outputs] == computed([plain(expected, ids(20, 1, 0))])
