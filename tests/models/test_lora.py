"""LoRA adapters, prefixes and tokenizers, compared with plain transformers."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from scoring import load, score
from tolerance import computed, in_bfloat16

from alarm_models.errors import CheckpointError
from alarm_models.recipe.specs import GenerativeSpec, SequenceSpec
from alarm_models.reward_models.registry import CheckpointState
from alarm_models.types import Sample

pytestmark = pytest.mark.numeric

TEMPLATE = "Human: {prompt}\nAssistant: {completion}"
SAMPLES = [
    Sample("What is the capital of France?", "Paris."),
    Sample("Say nothing.", ""),
    Sample("🙂 東京", "naïve café"),
]
RANK, ALPHA = 4, 8
TARGETS = {"q_proj": (32, 32), "v_proj": (16, 32), "down_proj": (32, 64)}
WRAPPED = "base_model.model."


def texts() -> list[str]:
    return [f"Human: {one.prompt_text}\nAssistant: {one.completion}" for one in SAMPLES]


def values(**keys: Any) -> list[float | None]:
    spec = SequenceSpec.model_validate({"template": TEMPLATE, **keys})
    return [one.value for one in score(load(spec), SAMPLES)]


def factors(modules: Mapping[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    tensors = {}
    for layer in range(2):
        for module, (rows, columns) in modules.items():
            block = "mlp" if module == "down_proj" else "self_attn"
            name = f"{WRAPPED}model.layers.{layer}.{block}.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, columns)
            tensors[f"{name}.lora_B.weight"] = torch.randn(rows, RANK)
    return tensors


def save_adapter(folder: Path, tensors: Mapping[str, torch.Tensor], **config: Any) -> None:
    folder.mkdir(exist_ok=True)
    save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    plain = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": "somewhere/else",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": list(TARGETS),
        "bias": "none",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(plain | config))


def merged(model: Any, tensors: Mapping[str, torch.Tensor], scaling: float) -> Any:
    """Merge by hand, one module after the other."""
    modules = dict(model.named_modules())
    for key, down in tensors.items():
        if key.endswith("lora_A.weight"):
            name = key.removeprefix(WRAPPED).removesuffix(".lora_A.weight")
            up = tensors[key.replace("lora_A", "lora_B")]
            modules[name].weight.data += scaling * up @ down
    return model


@pytest.fixture
def base(tmp_path: Path) -> tiny.Checkpoint:
    """A causal model, as adapters of reward models are trained on."""
    return tiny.causal("llama", tmp_path / "base")


@pytest.mark.parametrize("is_rslora", [False, True])
def test_adapter_with_head_scores_like_manual_merge(
    is_rslora: bool, base: tiny.Checkpoint, tmp_path: Path
) -> None:
    tensors = factors(TARGETS)
    head = torch.randn(1, 32)
    brought = {f"{WRAPPED}score.weight": head}
    save_adapter(
        tmp_path / "lora", tensors | brought, use_rslora=is_rslora, modules_to_save=["score"]
    )
    model = hf.LlamaForSequenceClassification.from_pretrained(base.folder, num_labels=1).eval()
    merged(model, tensors, ALPHA / (math.sqrt(RANK) if is_rslora else RANK))
    model.score.weight.data = head
    wanted = []
    for text in texts():
        with torch.inference_mode():
            logits = model(**base.tokenizer(text, return_tensors="pt")).logits
        wanted.append(computed(logits.item()))
    assert values(checkpoint=str(base.folder), adapter=str(tmp_path / "lora")) == wanted


def test_adapter_rank_and_alpha_patterns_apply_to_matching_modules(
    base: tiny.Checkpoint, tmp_path: Path
) -> None:
    tensors = factors({"q_proj": (32, 32)}) | {f"{WRAPPED}score.weight": torch.randn(1, 32)}
    name = "model.layers.1.self_attn.q_proj"
    save_adapter(tmp_path / "plain", tensors)
    save_adapter(tmp_path / "halved", tensors, alpha_pattern={"layers.1.self_attn.q_proj": 4})
    save_adapter(tmp_path / "ranked", tensors, rank_pattern={f"^{name}": 8})
    half = dict(tensors)
    half[f"{WRAPPED}{name}.lora_B.weight"] = tensors[f"{WRAPPED}{name}.lora_B.weight"] / 2
    save_adapter(tmp_path / "by_hand", half)
    got = {
        one: values(checkpoint=str(base.folder), adapter=str(tmp_path / one))
        for one in ("plain", "halved", "ranked", "by_hand")
    }
    assert got["halved"] == [computed(one) for one in got["by_hand"]]
    assert got["ranked"] == [computed(one) for one in got["by_hand"]]
    assert got["plain"] != [computed(one) for one in got["by_hand"]]


def test_adapter_of_llama_factory_with_value_head_is_loaded(
    base: tiny.Checkpoint, tmp_path: Path
) -> None:
    tensors = factors(TARGETS)
    folder = tmp_path / "lora"
    save_adapter(folder, tensors, task_type="CAUSAL_LM")
    weight, bias = torch.randn(1, 32), torch.randn(1)
    save_file(
        {"v_head.summary.weight": weight, "v_head.summary.bias": bias},
        folder / "value_head.safetensors",
    )
    model = merged(base.model, tensors, ALPHA / RANK)
    wanted = []
    for text in texts():
        with torch.inference_mode():
            states = model.model(**base.tokenizer(text, return_tensors="pt")).last_hidden_state
        wanted.append(computed((states[0, -1] @ weight[0] + bias[0]).item()))
    keys = {"checkpoint": str(base.folder), "adapter": str(folder), "head": "v_head.summary"}
    assert values(**keys) == wanted
    # The same as the older .bin.
    torch.save(load_file(folder / "value_head.safetensors"), folder / "value_head.bin")
    (folder / "value_head.safetensors").unlink()
    assert values(**keys) == wanted


def test_adapter_of_causal_model_is_merged(base: tiny.Checkpoint, tmp_path: Path) -> None:
    tensors = factors(TARGETS)
    save_adapter(tmp_path / "lora", tensors, task_type="CAUSAL_LM")
    spec = GenerativeSpec(
        checkpoint=str(base.folder), adapter=str(tmp_path / "lora"), template=TEMPLATE, positive=7
    )
    got = [one.value for one in score(load(spec), SAMPLES)]
    model = merged(base.model, tensors, ALPHA / RANK)
    for text, one in zip(texts(), got, strict=True):
        with torch.inference_mode():
            logits = model(**base.tokenizer(text, return_tensors="pt")).logits[0, -1]
        assert one == computed(logits[7].item())


def tied(folder: Path) -> tiny.Checkpoint:
    """A causal model whose input and output embeddings are one matrix."""
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(tiny.config("llama", tie_word_embeddings=True))
    return tiny.save(model, tiny.tokenizer(bos=True, eos=False), folder)


def logits_of_seven(checkpoint: tiny.Checkpoint, adapter: Path) -> list[float | None]:
    spec = GenerativeSpec(
        checkpoint=str(checkpoint.folder), adapter=str(adapter), template=TEMPLATE, positive=7
    )
    return [one.value for one in score(load(spec), SAMPLES)]


@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize("name", ["lm_head", "model.embed_tokens"])
def test_adapter_changes_one_of_two_tied_embeddings(
    name: str, is_whole: bool, tmp_path: Path
) -> None:
    base = tied(tmp_path / "base")
    model: Any = base.model
    table = model.get_input_embeddings().weight.detach()
    down, up = torch.randn(RANK, table.shape[1]), torch.randn(len(table), RANK)
    changed = table + (ALPHA / RANK) * up @ down
    if is_whole:
        tensors = {f"{WRAPPED}{name}.weight": changed}
    elif name == "lm_head":
        tensors = {
            f"{WRAPPED}lm_head.lora_A.weight": down,
            f"{WRAPPED}lm_head.lora_B.weight": up,
        }
    else:
        tensors = {
            f"{WRAPPED}{name}.lora_embedding_A": up.T.contiguous(),
            f"{WRAPPED}{name}.lora_embedding_B": down.T.contiguous(),
        }
    save_adapter(tmp_path / "lora", tensors, task_type="CAUSAL_LM")
    head, embeddings = (changed, table) if name == "lm_head" else (table, changed)
    wanted = []
    for text in texts():
        ids = base.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            state = model.model(inputs_embeds=embeddings[ids]).last_hidden_state[0, -1]
        wanted.append(float(head[7] @ state))
    got = logits_of_seven(base, tmp_path / "lora")
    assert got == [computed(one) for one in wanted]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_adapter_of_tied_embeddings_scores_like_peft(
    name: str, is_whole: bool, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    base = tied(tmp_path / "base")
    torch.manual_seed(5)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=["q_proj"] if is_whole else ["q_proj", name],
        modules_to_save=[name] if is_whole else None,
        init_lora_weights=False,
    )
    trained = peft.get_peft_model(base.model, config).eval()
    for key, parameter in trained.named_parameters():
        if "modules_to_save" in key:
            parameter.data += torch.randn_like(parameter)
    trained.save_pretrained(tmp_path / "lora")
    wanted = []
    for text in texts():
        with torch.inference_mode():
            logits = trained(**base.tokenizer(text, return_tensors="pt")).logits[0, -1]
        wanted.append(logits[7].item())
    assert logits_of_seven(base, tmp_path / "lora") == [computed(one) for one in wanted]


# What PEFT itself does is not ours to mend.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapter_scores_like_peft_merge(architecture: str, dtype: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    checkpoint = tiny.causal(architecture, tmp_path / "base")
    number = getattr(torch, dtype)
    torch.manual_seed(5)
    model = hf.AutoModelForSequenceClassification.from_pretrained(
        checkpoint.folder, num_labels=1, dtype=number
    )
    targets = {"llama": ["q_proj", "down_proj", "embed_tokens"], "gpt2": ["c_attn", "wte"]}
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=targets[architecture],
        init_lora_weights=False,
        alpha_pattern={targets[architecture][1]: 3},
    )
    trained = peft.get_peft_model(model, config).eval()
    trained.save_pretrained(tmp_path / "lora")
    base = hf.AutoModelForSequenceClassification.from_pretrained(
        checkpoint.folder, num_labels=1, dtype=number
    )
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "lora").merge_and_unload().eval()
    wanted = []
    for text in texts():
        with torch.inference_mode():
            logits = loaded(**checkpoint.tokenizer(text, return_tensors="pt")).logits
        wanted.append(logits.float().item())
    got = values(checkpoint=str(checkpoint.folder), adapter=str(tmp_path / "lora"), dtype=dtype)
    if dtype == "float32":
        assert got == [computed(one) for one in wanted]
    else:  # a batch rounds to eight bits in another order than a sample alone
        assert got == in_bfloat16(wanted)


@pytest.mark.parametrize(
    ("config", "more", "said"),
    [
        ({"use_dora": True}, {}, "uses use_dora, not supported"),
        ({"peft_type": "LOHA"}, {}, "adapter of type LOHA; only LoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, {}, "init_lora_weights = 'pissa_niter_4'"),
        ({}, {"x.lora_magnitude_vector": (1,)}, "has x.lora_magnitude_vector"),
        (
            {},
            {"model.layers.9.self_attn.q_proj.lora_A.weight": (4, 32)},
            "only one of lora_A and lora_B",
        ),
        (
            {},
            {"model.elsewhere.weight": (4, 32)},
            "changes model.elsewhere.weight, which the model",
        ),
        ({}, {"model.norm.weight": (7,)}, r"model.norm.weight is [7], in the checkpoint [32]"),
    ],
)
def test_adapter_with_unsupported_option_is_refused_by_name(
    config: dict[str, Any],
    more: Mapping[str, Sequence[int]],
    said: str,
    base: tiny.Checkpoint,
    tmp_path: Path,
) -> None:
    head = {f"{WRAPPED}score.weight": torch.randn(1, 32)}
    others = {f"{WRAPPED}{name}": torch.zeros(*shape) for name, shape in more.items()}
    save_adapter(tmp_path / "lora", factors(TARGETS) | head | others, **config)
    with pytest.raises(CheckpointError) as caught:
        values(checkpoint=str(base.folder), adapter=str(tmp_path / "lora"))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("adapter_config.json", b"{"),
        ("adapter_model.safetensors", b"of no layout"),
        ("adapter_model.bin", b"of no layout"),
    ],
)
def test_adapter_with_unreadable_file_is_refused(
    file: str, content: bytes, base: tiny.Checkpoint, tmp_path: Path
) -> None:
    lora = tmp_path / "lora"
    save_adapter(lora, factors(TARGETS))
    if file.endswith(".bin"):
        (lora / "adapter_model.safetensors").unlink()
    (lora / file).write_bytes(content)
    wrong = r"cannot be read|other than tensors|weight file contains"
    with pytest.raises(CheckpointError, match=wrong):
        values(checkpoint=str(base.folder), adapter=str(lora))


def test_fingerprint_covers_adapter_and_tokenizer(base: tiny.Checkpoint, tmp_path: Path) -> None:
    tensors = factors(TARGETS) | {f"{WRAPPED}score.weight": torch.randn(1, 32)}
    lora = tmp_path / "lora"
    save_adapter(lora, tensors)
    other = tmp_path / "other"
    tiny.tokenizer(bos=False, eos=True).save_pretrained(other)
    spec = SequenceSpec(checkpoint=str(base.folder), adapter=str(lora), template=TEMPLATE)
    state = CheckpointState(torch.device("cpu"))
    first = load(spec).fingerprint
    assert state.matches(spec, {}, first)
    elsewhere = spec.model_copy(update={"tokenizer": str(other)})
    second = load(elsewhere).fingerprint
    assert state.matches(elsewhere, {}, second)
    save_adapter(lora, tensors | {f"{WRAPPED}score.weight": torch.randn(1, 32)})
    third = load(spec).fingerprint
    assert not CheckpointState(torch.device("cpu")).matches(spec, {}, first)
    assert len({first, second, third}) == 3


def test_tokenizer_key_with_other_folder_is_used(tmp_path: Path) -> None:
    checkpoint = tiny.sequence_classifier("llama", tmp_path / "base")
    other = tiny.tokenizer(bos=False, eos=True)
    other.save_pretrained(tmp_path / "other")
    for file in (tmp_path / "base").glob("*token*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="Write `tokenizer`"):
        values(checkpoint=str(tmp_path / "base"))
    wanted = []
    for text in texts():
        with torch.inference_mode():
            wanted.append(checkpoint.model(**other(text, return_tensors="pt")).logits.item())
    got = values(checkpoint=str(tmp_path / "base"), tokenizer=str(tmp_path / "other"))
    assert got == [computed(one) for one in wanted]


def under(folder: Path, prefix: str, beside: Mapping[str, torch.Tensor]) -> tiny.Checkpoint:
    """Make a Llama base whose tensors are called otherwise, with a copy that nobody reads."""
    checkpoint = tiny.base_with(folder, {})
    state = load_file(folder / "model.safetensors")
    named = {key.removeprefix("model."): tensor for key, tensor in state.items()}
    save_file(
        {f"{prefix}.{key}": tensor for key, tensor in named.items()} | dict(beside),
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return checkpoint


@pytest.mark.parametrize("prefix", ["transformer", "rwtransformer.", "a.model"])
def test_prefix_of_base_is_applied(prefix: str, tmp_path: Path) -> None:
    head = torch.randn(1, 32)
    checkpoint = under(tmp_path, prefix.removesuffix("."), {"v_head.weight": head})
    wanted = []
    for text in texts():
        with torch.inference_mode():
            states = checkpoint.model(**checkpoint.tokenizer(text, return_tensors="pt"))
        wanted.append(computed((states.last_hidden_state[0, -1] @ head[0]).item()))
    assert values(checkpoint=str(tmp_path), head="v_head", prefix=prefix) == wanted


def test_prefix_of_classifier_keeps_its_head(tmp_path: Path) -> None:
    head = torch.randn(1, 32)
    checkpoint = under(tmp_path, "transformer", {"score.weight": head})
    wanted = []
    for text in texts():
        with torch.inference_mode():
            states = checkpoint.model(**checkpoint.tokenizer(text, return_tensors="pt"))
        wanted.append(computed((states.last_hidden_state[0, -1] @ head[0]).item()))
    assert values(checkpoint=str(tmp_path), prefix="transformer") == wanted


def test_prefix_without_tensors_is_refused(tmp_path: Path) -> None:
    tiny.base_with_head(tmp_path)
    with pytest.raises(CheckpointError, match=r"no tensor under wrong\.: check `prefix`"):
        values(checkpoint=str(tmp_path), head="regression_head", prefix="wrong")


def test_classifier_without_num_labels_uses_rows_of_its_head(
    tmp_path: Path,
) -> None:
    checkpoint = tiny.sequence_classifier("qwen3", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("id2label", "label2id", "num_labels"):
        config.pop(key, None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    wanted = [computed(checkpoint.plain_logits(text).item()) for text in texts()]
    assert values(checkpoint=str(tmp_path)) == wanted
