"""Backend selection: what does not give the model's own scores is not used."""

import copy
from functools import cache

import pytest
import torch
import transformers as hf
from tolerance import computed
from unusual import CONFIGURATIONS, REFORMER, classifier, features, ids, network, plain

from alarm_models.errors import CheckpointError
from alarm_models.modeling import backend_selection
from alarm_models.modeling.backend_selection import Backbone, select_backend
from alarm_models.modeling.inputs import BatchLayout
from alarm_models.modeling.kernels.modules import unfuse_modules
from alarm_models.modeling.linear_kernels import PLAIN, unpack_linears
from alarm_models.modeling.network import HeadedNetwork, Network
from alarm_models.modeling.packed.backbone import PackedBackbone
from alarm_models.modeling.packed.last_layer import restore_last_layer
from alarm_models.modeling.packed.prefix_cache import BatchKV

pytestmark = pytest.mark.numeric

#: Two layers with a short convolution beside attention.
LFM2 = (
    hf.Lfm2Config,
    {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 500,
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    },
)  # fmt: skip

#: Lengths that the probe does not have, and compositions of them: (tokens, of them the prompt's).
BATCHES = [
    [(7, 0), (60, 0)],
    [(40, 30), (35, 30), (140, 0), (64, 0), (65, 0)],
    [(200, 0), (35, 30), (33, 0), (90, 30)],
    [(40, 30)],
    [(101, 0), (500, 0), (9, 0)],
]


@cache
def both(name: str) -> tuple[hf.PreTrainedModel, Network]:
    model = classifier(name)
    return copy.deepcopy(model), network(model)


@pytest.mark.parametrize("name", [*CONFIGURATIONS])
def test_selected_backend_gives_transformers_scores_in_any_batch(name: str) -> None:
    model, served = both(name)
    for batch in BATCHES:
        samples = [ids(length, seed, prompt) for seed, (length, prompt) in enumerate(batch)]
        outputs = served.forward(features(served, samples))
        wanted = [plain(model, sample) for sample in samples]
        assert [one.item() for one in outputs] == computed(wanted)


@pytest.mark.parametrize(
    "name",
    ["bigbird", "canine", "convbert", "fnet", "mobilebert", "nystromformer", "reformer", "xlnet"],
)
def test_select_backend_if_padding_changes_scores_runs_samples_alone(name: str) -> None:
    assert both(name)[1].cost is BatchLayout.SINGLE


@pytest.mark.parametrize("name", ["bart", "electra", "esm", "ibert", "luke", "mpnet", "t5"])
def test_select_backend_if_padding_is_exact_pads(name: str) -> None:
    assert both(name)[1].cost is BatchLayout.PADDED


def test_select_backend_with_random_scores_is_refused() -> None:
    made = hf.ReformerConfig(**REFORMER | {"attn_layers": ["local", "lsh"], "num_buckets": 8})
    torch.manual_seed(0)
    model = hf.AutoModelForSequenceClassification.from_config(made).eval()
    with pytest.raises(CheckpointError, match="is nondeterministic"):
        network(model)


def test_select_backend_with_nan_weights_is_not_refused_as_random() -> None:
    model = classifier("electra")
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    served = network(model)
    (output,) = served.forward(features(served, [ids(20)]))
    assert output.isnan().all()


def test_probe_of_padding_in_half_precision_runs_in_float32() -> None:
    model = classifier("mobilebert").to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert network(model).cost is BatchLayout.SINGLE
    # The kernels of some processors.
    unpack_linears(model)
    unfuse_modules(model)
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}


def small(name: str) -> hf.PreTrainedModel:
    """Make a model whose layers change its states little, as `transformers` initializes it."""
    configuration, sizes = {**CONFIGURATIONS, "lfm2": LFM2}[name]
    torch.manual_seed(0)
    return hf.AutoModel.from_config(configuration(**sizes)).eval()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name", ["convbert", "electra", "esm", "ibert", "luke", "mpnet", "xlnet", "lfm2", "qwen2-yarn"]
)
def test_select_backend_in_half_precision_selects_what_is_exact_in_float32(
    name: str, dtype: torch.dtype
) -> None:
    expected = select_backend(small(name), prefix_cache_bytes=1 << 26)
    model = small(name).to(dtype)
    before = _copies(model)
    selected = select_backend(model, prefix_cache_bytes=1 << 26)
    assert _layout(selected) == _layout(expected)
    # The kernels of some processors.
    unpack_linears(model)
    unfuse_modules(model)
    restore_last_layer(model)
    after = _copies(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


def _layout(backbone: Backbone) -> tuple[object, ...]:
    is_packed = isinstance(backbone, PackedBackbone)
    return backbone.cost, is_packed and (backbone.is_pruned, backbone.has_prefix_cache)


def _copies(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        key: tensor.clone()
        for named in (model.named_parameters(), model.named_buffers())
        for key, tensor in named
    }


@pytest.mark.parametrize(
    ("name", "cost"),
    [
        ("electra", BatchLayout.PACKED),
        ("ibert", BatchLayout.PADDED),
        ("lfm2", BatchLayout.PADDED),
        ("mpnet", BatchLayout.PADDED),
        ("xlnet", BatchLayout.PADDED),
    ],
)
def test_select_backend_of_a_large_model_does_not_trust_outputs_alone(
    name: str, cost: BatchLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_selection, "_MAX_FLOAT32_BYTES", 0)
    assert select_backend(small(name).to(torch.bfloat16)).cost is cost


def test_select_backend_of_a_model_with_its_own_attention_does_not_pack() -> None:
    torch.manual_seed(0)
    config = hf.GPTJConfig(n_embd=64, n_layer=2, n_head=4, rotary_dim=8, vocab_size=500)
    assert select_backend(hf.AutoModel.from_config(config).eval()).cost is BatchLayout.PADDED


@pytest.mark.parametrize(
    ("error", "is_packed"),
    [
        (RuntimeError, False),
        (OSError, False),
        (OSError, True),
        (torch.OutOfMemoryError, False),
        (torch.OutOfMemoryError, True),
    ],
)
@pytest.mark.parametrize(
    ("name", "cost"),
    [("qwen2-yarn", BatchLayout.PREFIX_SHARED), ("mpnet", BatchLayout.PADDED)],
)
def test_select_backend_of_a_model_that_does_not_run_in_float32_probes_its_dtype(
    name: str, cost: BatchLayout, is_packed: bool, error: type[Exception]
) -> None:
    model = small(name).to(torch.bfloat16)

    def refuse(module: torch.nn.Module, _: object, given: dict[str, object]) -> None:
        is_meant = ("position_ids" in given) == is_packed
        if is_meant and next(module.parameters()).dtype is torch.float32:
            raise error("not in float32")

    model.register_forward_pre_hook(refuse, with_kwargs=True)
    assert select_backend(model, prefix_cache_bytes=1 << 26).cost is cost


def test_select_backend_with_two_attentions_a_layer_shares_without_prefix_cache() -> None:
    _, served = both("diffllama")
    assert isinstance(served, HeadedNetwork)
    backbone = served._backbone
    assert isinstance(backbone, PackedBackbone)
    assert (backbone.cost, backbone.has_prefix_cache) == (BatchLayout.PREFIX_SHARED, False)


def test_probe_with_inexact_prefix_cache_disables_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = BatchKV._splice
    monkeypatch.setattr(BatchKV, "_splice", lambda *given: right(*given) * 1.01)
    backbone = select_backend(classifier("qwen2-yarn").model, prefix_cache_bytes=1 << 28)
    assert isinstance(backbone, PackedBackbone)
    assert (backbone.cost, backbone.has_prefix_cache) == (BatchLayout.PREFIX_SHARED, False)


def test_probe_with_exact_prefix_cache_keeps_it() -> None:
    backbone = select_backend(classifier("qwen2-yarn").model, prefix_cache_bytes=1 << 28)
    assert isinstance(backbone, PackedBackbone)
    assert backbone.has_prefix_cache


def test_probe_with_window_too_short_to_share_selects_packed() -> None:
    configuration, small = CONFIGURATIONS["modernbert"]
    torch.manual_seed(0)
    model = hf.AutoModel.from_config(configuration(**{**small, "local_attention": 32})).eval()
    assert select_backend(model).cost is BatchLayout.PACKED


def test_probe_leaves_the_prefix_cache_empty() -> None:
    backbone = select_backend(classifier("qwen2-yarn").model, prefix_cache_bytes=1 << 28)
    (sample,) = features(both("qwen2-yarn")[1], [ids(40)])
    assert backbone.forward([sample]).num_computed == [40]


def test_probe_takes_fourteen_short_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    # The kernels of some processors take four more for each kind.
    monkeypatch.setattr(backend_selection, "fastest_linear", lambda *_: PLAIN)
    monkeypatch.setattr(backend_selection, "compiled_kernels", lambda *_: None)
    model = classifier("qwen2-yarn").model
    passes = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    select_backend(model, prefix_cache_bytes=1 << 28)
    assert (
        len(passes) == 8 + 1 + 2 + 3
    )  # alone, one of them again, in batches, with the prefix cache
