"""The compiled kernels: torch's results, for each instruction set, and any model runs on them."""

import copy
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers as hf
from tolerance import assert_computed, computed
from transformers.models.llama.modeling_llama import LlamaMLP, apply_rotary_pos_emb
from unusual import classifier, features, ids, network, plain

from alarm_models.modeling import backend_selection
from alarm_models.modeling.kernels import library, modules
from alarm_models.modeling.kernels.library import CompiledKernels, compiled_kernels
from alarm_models.modeling.kernels.modules import (
    FusedGatedMlp,
    FusedIntermediate,
    FusedResidualNorm,
    FusedRMSNorm,
    count_fused,
    fuse_modules,
    rotate_heads,
    unfuse_modules,
)
from alarm_models.modeling.packed import compiled
from alarm_models.modeling.packed.batch import pack

pytestmark = pytest.mark.numeric

BF16 = torch.bfloat16

#: The processor features that each library needs.
FEATURES = {
    "avx2": ("avx2",),
    "avx512": ("avx512_f", "avx512_vl", "avx512_bw", "avx512_dq"),
    "avx512_bf16": ("avx512_f", "avx512_vl", "avx512_bw", "avx512_dq", "avx512_bf16"),
}

needs_kernels = pytest.mark.skipif(
    compiled_kernels(torch.float32) is None, reason="no compiled kernels for this processor"
)


def all_kernels() -> Iterator[CompiledKernels]:
    """Yield the kernels of each library that runs here, for each dtype."""
    if compiled_kernels(torch.float32) is None:
        return  # torch was told to use no such instructions, or has another thread pool
    capabilities = torch.cpu.get_capabilities()
    for name, needed in FEATURES.items():
        if all(capabilities.get(one, False) for one in needed):
            path = Path(library.__file__).with_name(f"kernels_{name}.so")
            yield CompiledKernels(ctypes.CDLL(str(path)), name, torch.float32)
            if name == "avx512_bf16":
                yield CompiledKernels(ctypes.CDLL(str(path)), name, BF16)


def each_of(kernels: list[CompiledKernels]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "kernels", kernels, ids=lambda one: f"{one.name}-{str(one.dtype)[6:]}"
    )


each_kernels = each_of(list(all_kernels()))


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Fail unless results agree, in bfloat16 up to its rounding."""
    assert actual.dtype is expected.dtype
    if actual.dtype is BF16:
        assert ((actual - expected).abs() <= 2**-6 * (1 + expected.abs())).all()
    else:
        assert_computed(actual, expected)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_there_are_kernels_for_each_processor_with_avx2_on_linux() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("the kernels are compiled for Linux")
    capability = torch.backends.cpu.get_cpu_capability()
    assert (compiled_kernels(torch.float32) is not None) == (capability in ("AVX2", "AVX512"))
    converts = torch.cpu.get_capabilities().get("avx512_bf16", False) and capability == "AVX512"
    assert (compiled_kernels(BF16) is not None) == converts
    assert compiled_kernels(torch.float16) is None
    assert compiled_kernels(torch.float64) is None


def test_without_a_library_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_instruction_set", lambda: "sse2")
    assert compiled_kernels.__wrapped__(torch.float32) is None


@needs_kernels
def test_a_library_of_other_sources_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(library, "_checksum_of_sources", lambda: 1)
    assert compiled_kernels.__wrapped__(torch.float32) is None
    assert "was compiled from other sources: install alarm-models again" in caplog.text


@each_kernels
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 5, 16), (1, 70, 768), (0, 32)])
def test_rms_norm_is_that_of_llama(kernels: CompiledKernels, shape: tuple[int, ...]) -> None:
    norm = hf.models.llama.modeling_llama.LlamaRMSNorm(shape[-1], eps=1e-5)
    norm.weight.data = random(shape[-1]) + 1
    norm.to(kernels.dtype)
    states = (3 * random(*shape)).to(kernels.dtype)
    assert_near(kernels.rms_norm(states, norm.weight, 1e-5), norm(states).detach())


@each_kernels
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 64, 1000, 70_001])
def test_gated_silu_is_that_of_torch(kernels: CompiledKernels, size: int) -> None:
    gate, up = (10 * random(2, size)).to(kernels.dtype)
    expected = torch.nn.functional.silu(gate) * up
    assert_near(kernels.gated_silu_(gate.clone(), up), expected)


@each_kernels
def test_gated_silu_of_extreme_numbers_is_that_of_torch(kernels: CompiledKernels) -> None:
    gate = torch.tensor([-1e30, -200.0, -90.0, 0.0, 90.0, 1e30, float("nan")]).to(kernels.dtype)
    up = torch.ones_like(gate)
    outputs = kernels.gated_silu_(gate.clone(), up)
    assert torch.equal(outputs.isnan(), gate.isnan())
    assert_near(outputs[1:-1], torch.nn.functional.silu(gate)[1:-1])


@each_kernels
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 5, 16), (1, 70, 768), (0, 32)])
def test_residual_norm_is_that_of_torch(kernels: CompiledKernels, shape: tuple[int, ...]) -> None:
    norm = torch.nn.LayerNorm(shape[-1], eps=1e-5)
    norm.weight.data, norm.bias.data = random(2, shape[-1])
    norm.to(kernels.dtype)
    states, residual = (3 * random(2, *shape)).to(kernels.dtype)
    normed = kernels.residual_norm_(states.clone(), residual, norm.weight, norm.bias, norm.eps)
    assert_near(normed, norm(states + residual).detach())


@each_of([one for one in all_kernels() if one.has_gelu])
@pytest.mark.parametrize("size", [0, 1, 17, 64, 70_001])
def test_gelu_is_that_of_torch(kernels: CompiledKernels, size: int) -> None:
    states = 3 * random(size)
    assert_near(kernels.gelu_(states.clone()), torch.nn.functional.gelu(states))
    extreme = torch.tensor([-1e30, -6.0, -5.5, -5.4, 5.4, 5.5, 6.0, 1e30, torch.nan])
    outputs, expected = kernels.gelu_(extreme.clone()), torch.nn.functional.gelu(extreme)
    assert_near(outputs[:-1], expected[:-1])
    assert outputs[-1].isnan()


@each_kernels
@pytest.mark.parametrize(("tokens", "heads", "dim"), [(1, 1, 2), (9, 3, 20), (300, 2, 64)])
def test_rotate_is_that_of_llama(
    kernels: CompiledKernels, tokens: int, heads: int, dim: int
) -> None:
    states = random(1, tokens, heads, dim).to(kernels.dtype).transpose(1, 2)
    cosine, sine = random(2, 1, tokens, dim).to(kernels.dtype)
    exact = [one.float() for one in (states, states, cosine, sine)]
    expected, _ = apply_rotary_pos_emb(*exact)
    rotated = kernels.rotate(states[0].transpose(0, 1), cosine[0], sine[0])
    assert_near(rotated, expected[0].transpose(0, 1).to(kernels.dtype))


@each_kernels
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dim", [2, 16, 33 * 2, 256])
def test_attend_is_attention_of_each_sample(
    kernels: CompiledKernels, dim: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    samples = [tuple(range(length)) for length in (1, 31, 32, 33, 170)]
    plan = compiled._plan(pack(samples, share=False), False, None, kernels.queries_per_block)
    assert plan is not None
    num_tokens = sum(map(len, samples))
    query = random(num_tokens, 4, dim).to(kernels.dtype)
    key, value = random(2, num_tokens, 2, dim).to(kernels.dtype)
    outputs = kernels.attend(query, key, value, dim**-0.5, *plan)
    start = 0
    for sample in samples:
        rows = slice(start, start + len(sample))
        start += len(sample)
        expected = torch.nn.functional.scaled_dot_product_attention(
            *(one[rows].float().transpose(0, 1).unsqueeze(0) for one in (query, key, value)),
            enable_gqa=True,
        )
        expected = expected[0].transpose(0, 1).to(kernels.dtype)
        assert_near(outputs[rows], expected)


@each_kernels
def test_tensors_that_the_kernels_would_misread_are_refused(kernels: CompiledKernels) -> None:
    dtype = kernels.dtype
    states, other = torch.ones(4, 8, dtype=dtype), torch.ones(4, 8, dtype=torch.float64)
    weight, heads = torch.ones(8, dtype=dtype), torch.ones(4, 2, 8, dtype=dtype)
    for refused in (
        lambda: kernels.rms_norm(other, weight, 1e-6),
        lambda: kernels.rms_norm(states.t(), weight[:4], 1e-6),
        lambda: kernels.rms_norm(states, weight[:7], 1e-6),
        lambda: kernels.residual_norm_(states, states[:3], weight, weight, 1e-6),
        lambda: kernels.residual_norm_(states, states, weight, weight[:2], 1e-6),
        lambda: kernels.gated_silu_(states, states[:, :4].contiguous()),
        lambda: kernels.gated_silu_(states, other),
        lambda: kernels.rotate(heads, states[:3], states[:3]),
        lambda: kernels.rotate(heads.double(), other, other),
        lambda: kernels.attend(heads, heads[:, :, :6], heads, 1.0, *plan_of(4, kernels)),
        lambda: kernels.attend(heads, heads.double(), heads, 1.0, *plan_of(4, kernels)),
    ):
        with pytest.raises(ValueError, match=r"instead of|not contiguous"):
            refused()
    meta = torch.ones(4, 8, dtype=dtype, device="meta")
    with pytest.raises(ValueError, match="on meta instead of"):
        kernels.rms_norm(meta, weight, 1e-6)


def plan_of(num_tokens: int, kernels: CompiledKernels) -> compiled._Plan:
    packed = pack([tuple(range(num_tokens))], share=False)
    plan = compiled._plan(packed, False, None, kernels.queries_per_block)
    assert plan is not None
    return plan


@needs_kernels
def test_a_fused_model_can_be_copied() -> None:
    model = classifier("qwen2-yarn")
    fuse_modules(model)
    copied = copy.deepcopy(model)
    inputs = torch.tensor([ids(20, 1, 0)])
    with torch.inference_mode():
        assert torch.equal(model(inputs).logits, copied(inputs).logits)


@needs_kernels
def test_kernels_that_are_not_exact_replace_no_module(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*states: torch.Tensor | float) -> torch.Tensor:
        return torch.zeros_like(states[1])  # type: ignore[arg-type]

    for name in ("rms_norm", "gated_silu_", "residual_norm_", "gelu_"):
        monkeypatch.setattr(CompiledKernels, name, broken)
    monkeypatch.setattr(CompiledKernels, "rotate", lambda self, states, *_: states + 1)
    for name in ("qwen2-yarn", "electra"):
        model = classifier(name)
        fuse_modules(model)
        assert count_fused(model) == 0


@needs_kernels
def test_fuse_modules_replaces_what_is_like_llamas_and_unfuse_restores_it() -> None:
    model = classifier("qwen2-yarn")
    before = [(name, type(module)) for name, module in model.named_modules()]
    layers = model.config.num_hidden_layers
    # Two norms, an MLP and an attention layer in each layer, and the last norm.
    fuse_modules(model)
    assert count_fused(model) == 4 * layers + 1
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(FusedRMSNorm) == 2 * layers + 1
    assert kinds.count(FusedGatedMlp) == layers
    unfuse_modules(model)
    assert [(name, type(module)) for name, module in model.named_modules()] == before
    assert count_fused(model) == 0


@needs_kernels
def test_fuse_modules_replaces_what_is_like_berts() -> None:
    model = classifier("electra")
    fuse_modules(model)
    kinds = [type(module) for module in model.modules()]
    layers = model.config.num_hidden_layers
    assert kinds.count(FusedResidualNorm) == 2 * layers
    assert kinds.count(FusedIntermediate) == layers
    unfuse_modules(model)
    assert not {type(module) for module in model.modules()} & {FusedResidualNorm, FusedIntermediate}


class LimitedMlp(LlamaMLP):
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        gate = self.act_fn(self.gate_proj(states)).clamp(max=10)
        return self.down_proj(gate * self.up_proj(states))


class LimitedSiLU(torch.nn.Module):
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(states).clamp(-50, 50)


class NormWithOtherName(torch.nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(32))
        setattr(self, name, 1e-6)
        self.name = name

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        epsilon = getattr(self, self.name)
        return states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + epsilon) * self.weight


class OtherRMSNorm(NormWithOtherName):
    pass


def llama() -> hf.PreTrainedModel:
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        vocab_size=50, initializer_range=0.2,
    )  # fmt: skip
    return hf.AutoModel.from_config(config).eval()


@needs_kernels
def test_fuse_modules_leaves_an_mlp_with_a_limit() -> None:
    model = llama()
    model.layers[0].mlp = LimitedMlp(model.config).eval()
    fuse_modules(model)
    assert type(model.layers[0].mlp) is LimitedMlp
    model = llama()
    model.layers[0].mlp.act_fn = LimitedSiLU()
    fuse_modules(model)
    assert type(model.layers[0].mlp) is LlamaMLP


@needs_kernels
def test_fuse_modules_leaves_a_clipped_gelu() -> None:
    config = hf.BertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        vocab_size=50, hidden_act="gelu_10", initializer_range=0.2,
    )  # fmt: skip
    model = hf.BertModel(config).eval()
    fuse_modules(model)
    assert not any(isinstance(one, FusedIntermediate) for one in model.modules())
    assert any(isinstance(one, FusedResidualNorm) for one in model.modules())


@needs_kernels
@pytest.mark.parametrize(
    ("name", "is_known"),
    [("variance_epsilon", True), ("epsilon", True), ("norm_eps", True), ("tiny", False)],
)
def test_fuse_modules_takes_a_norm_only_with_its_epsilon(name: str, is_known: bool) -> None:
    model = llama()
    model.norm = OtherRMSNorm(name)
    fuse_modules(model)
    assert isinstance(model.norm, FusedRMSNorm) == is_known
    with torch.inference_mode():
        assert torch.equal(model.norm(torch.zeros(2, 32)), torch.zeros(2, 32))


@needs_kernels
def test_fuse_modules_leaves_a_wrapped_forward() -> None:
    model = llama()
    wrapped = [model.layers[0].self_attn, model.layers[0].mlp, model.norm]
    for module in wrapped:
        module.forward = module.forward
    fuse_modules(model)
    assert [model.layers[0].self_attn, model.layers[0].mlp, model.norm] == wrapped
    assert count_fused(model) > 0  # the other norms
    unfuse_modules(model)
    assert all("forward" in vars(module) for module in wrapped)


@needs_kernels
def test_a_rotation_that_is_called_otherwise_is_the_original() -> None:
    kernels = compiled_kernels(torch.float32)
    assert kernels is not None
    rotation = modules._Rotation(apply_rotary_pos_emb, kernels)
    query = random(1, 9, 2, 8).transpose(1, 2)
    cosine, sine = random(2, 1, 9, 8)
    expected = apply_rotary_pos_emb(query, query, cosine, sine)
    for one, other in (
        rotation(query, query, cosine, sine),
        rotation(query, query, cos=cosine, sin=sine),
        rotation(query, query, cosine, sine, 1),
    ):
        assert_computed(one, expected[0])
        assert_computed(other, expected[1])


@needs_kernels
def test_select_backend_without_parts_to_fuse_says_so() -> None:
    # BigBird's state, with its modules, is restored before each pass.
    assert "fused=none" in network(classifier("bigbird")).execution
    config = hf.GPT2Config(
        n_embd=32, n_layer=1, n_head=4, vocab_size=300, num_labels=1, pad_token_id=0
    )
    assert "fused=none" in network(hf.GPT2ForSequenceClassification(config).eval()).execution


@needs_kernels
def test_fuse_modules_changes_no_other_model() -> None:
    fused, other = classifier("qwen2-yarn"), classifier("qwen2-yarn")
    original = hf.models.qwen2.modeling_qwen2.apply_rotary_pos_emb
    fuse_modules(fused)
    assert hf.models.qwen2.modeling_qwen2.apply_rotary_pos_emb is original
    assert count_fused(other) == 0


@needs_kernels
@pytest.mark.parametrize("name", ["gemma", "cohere"])
def test_fuse_modules_leaves_other_norms_activations_and_rotations(name: str) -> None:
    small = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 50,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
    }  # fmt: skip
    model = hf.AutoModel.from_config(hf.AutoConfig.for_model(name, **small)).eval()
    fuse_modules(model)
    kinds = {type(module) for module in model.modules()}
    if name == "gemma":  # its weight is added to 1, its gate is GELU
        assert not kinds & {FusedRMSNorm, FusedGatedMlp}
    else:  # neighbours rotate together, and norms are not by the root mean square
        assert count_fused(model) == 1
        assert kinds >= {FusedGatedMlp}


@pytest.mark.parametrize("shape", [(1, 2, 9, 8), (3, 2, 9, 8)])
def test_rotate_heads_is_that_of_llama_in_each_dtype(shape: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.float64):
        states = random(*shape).to(dtype)
        cosine, sine = random(2, shape[0], *shape[2:]).to(dtype)
        expected, _ = apply_rotary_pos_emb(states, states, cosine, sine)
        assert_computed(rotate_heads(states, cosine, sine), expected)


@needs_kernels
@pytest.mark.parametrize(
    "name",
    ["llama-dynamic", "electra", "phimoe", "t5", "opt", "qwen2-yarn", "diffllama", "modernbert"],
)
def test_select_backend_on_compiled_kernels_gives_transformers_scores(name: str) -> None:
    model = classifier(name)
    expected = copy.deepcopy(model)
    served = network(model)
    has_parts = name not in ("t5", "opt")
    fused = library._instruction_set() if has_parts else "none"
    assert f"fused={fused}" in served.execution
    samples = [
        ids(length, seed, prompt) for seed, (length, prompt) in enumerate([(40, 30), (35, 30)])
    ]
    outputs = served.forward(features(served, samples))
    assert [one.item() for one in outputs] == computed([plain(expected, one) for one in samples])


@needs_kernels
def test_select_backend_if_a_model_fails_on_compiled_kernels_leaves_it_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(model: hf.PreTrainedModel) -> None:
        fuse_modules(model)
        model.forward = None  # type: ignore[method-assign]
        raise RuntimeError("a model of another kind")

    def undo(model: hf.PreTrainedModel) -> None:
        unfuse_modules(model)
        del model.forward

    monkeypatch.setattr(backend_selection, "fuse_modules", broken)
    monkeypatch.setattr(backend_selection, "unfuse_modules", undo)
    model = classifier("qwen2-yarn")
    expected = copy.deepcopy(model)
    served = network(model)
    assert "fused=none" in served.execution
    outputs = served.forward(features(served, [ids(20, 1, 0)]))
    assert [one.item() for one in outputs] == computed([plain(expected, ids(20, 1, 0))])
