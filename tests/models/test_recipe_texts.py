"""Text keys of recipes, compared with model cards in plain transformers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as hf
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file
from scoring import load, score
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tolerance import computed
from vocabularies import train_wordpiece

from alarm_models.errors import RecipeError, SampleError
from alarm_models.recipe.loader import load_recipe
from alarm_models.recipe.specs import GenerativeSpec, ModelSpec, MultiObjectiveSpec, SequenceSpec
from alarm_models.types import Message, Sample

pytestmark = pytest.mark.numeric

CHAT = (
    Message("system", "Be brief."),
    Message("user", "  Hi there\n"),
    Message("assistant", "Yes?"),
    Message("user", "東京 or Paris?"),
)
SAMPLES = [
    Sample("What is the capital of France?", "Paris."),
    Sample("Say nothing.", ""),
    Sample(" spaces \n", "\n around \n"),
    Sample("A literal </s> token", "<|im_end|> and <s>"),
    Sample(CHAT, "naïve café 🙂"),
]


def messages(sample: Sample) -> list[dict[str, str]]:
    prompt = sample.prompt
    turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    return [{"role": one.role, "content": one.content} for one in turns] + [
        {"role": "assistant", "content": str(sample.completion)}
    ]


class Card:
    """The model as a card runs it: text, token ids, the head on the last token's state."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = hf.AutoTokenizer.from_pretrained(folder)
        self._base = hf.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self._head = load_file(folder / "model.safetensors")["v_head.weight"][0]

    def chat(self, sample: Sample, **more: Any) -> str:
        text: str = self.tokenizer.apply_chat_template(messages(sample), tokenize=False, **more)
        return text

    def score(self, text: str, *, add_special_tokens: bool) -> float:
        ids = self.tokenizer(text, add_special_tokens=add_special_tokens).input_ids
        with torch.inference_mode():
            states = self._base(torch.tensor([ids])).last_hidden_state
        return float((states[0, -1] @ self._head).item())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("text_forms")
    tiny.base_with_head(made, head="v_head")
    tokenizer = tiny.tokenizer(bos=True, eos=False)
    # As Llama 3's: the template writes the first token itself.
    tokenizer.chat_template = "{{ bos_token }}" + tiny.CHAT_TEMPLATE
    tokenizer.save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def card(folder: Path) -> Card:
    return Card(folder)


def scores(folder: Path, samples: Sequence[Sample] = SAMPLES, **keys: Any) -> list[float | None]:
    spec = SequenceSpec.model_validate({"checkpoint": str(folder), "head": "v_head", **keys})
    return [one.value for one in score(load(spec), samples)]


def test_special_tokens_true_adds_a_second_bos_to_a_chat(folder: Path, card: Card) -> None:
    twice = [card.score(card.chat(one), add_special_tokens=True) for one in SAMPLES]
    once = [card.score(card.chat(one), add_special_tokens=False) for one in SAMPLES]
    assert scores(folder, special_tokens=True) == [computed(one) for one in twice]
    assert scores(folder, special_tokens=False) == [computed(one) for one in once]
    assert scores(folder) == [computed(one) for one in once]


def test_special_tokens_false_adds_none_to_a_text(folder: Path, card: Card) -> None:
    template = "Human: {prompt}\nAssistant: {completion}"
    wanted = [
        card.score(
            f"Human: {one.prompt_text}\nAssistant: {one.completion}", add_special_tokens=False
        )
        for one in SAMPLES[:4]
    ]
    got = scores(folder, SAMPLES[:4], template=template, special_tokens=False)
    assert got == [computed(one) for one in wanted]


def test_suffix_token_is_read_as_in_athene(folder: Path, card: Card) -> None:
    wanted = [card.score(card.chat(one) + "<extra_0>", add_special_tokens=True) for one in SAMPLES]
    got = scores(folder, suffix="<extra_0>", special_tokens=True)
    assert got == [computed(one) for one in wanted]


def test_suffix_and_strip_end_a_chat_as_in_openrlhf(folder: Path, card: Card) -> None:
    def text_of(sample: Sample, end: str) -> str:
        text = card.chat(sample).rstrip("\n")
        return text if text.endswith(end) else f"{text} {end}"

    for end in ("<|im_end|>", "</s>"):  # the chat ends with the first, not with the second
        wanted = [card.score(text_of(one, end), add_special_tokens=False) for one in SAMPLES]
        assert scores(folder, strip=True, suffix=f" {end}") == [computed(one) for one in wanted]


def test_turns_of_ultrarm_render_as_its_card(folder: Path, card: Card) -> None:
    form = {"user": "Human: {}", "assistant": "Assistant: {}", "system": "{}"}
    wanted = []
    for one in SAMPLES:
        text = "\n".join(form[turn["role"]].format(turn["content"]) for turn in messages(one))
        wanted.append(computed(card.score(text, add_special_tokens=True)))
    assert scores(folder, turns={**form, "separator": "\n"}) == wanted
    ended = {role: f"{turn}\n" for role, turn in form.items()}
    assert scores(folder, turns=ended, strip="\n") == wanted


def test_turns_of_beaver_render_as_its_card(folder: Path, card: Card) -> None:
    samples = [*SAMPLES[:4], Sample(CHAT[1:], "naïve")]
    wanted = []
    for one in samples:
        text = "BEGINNING OF CONVERSATION: "
        for turn in messages(one):
            content = turn["content"]
            text += f"USER: {content} ASSISTANT:" if turn["role"] == "user" else content
        wanted.append(computed(card.score(text, add_special_tokens=True)))
    turns = {
        "start": "BEGINNING OF CONVERSATION: ",
        "user": "USER: {} ASSISTANT:",
        "assistant": "{}",
    }
    assert scores(folder, samples, turns=turns) == wanted
    spec = SequenceSpec.model_validate(
        {"checkpoint": str(folder), "head": "v_head", "turns": turns}
    )
    (refused,) = load(spec).prepare([Sample(CHAT, "naïve")])
    assert isinstance(refused, SampleError)
    assert "no text for the role 'system'; they have user, assistant" in refused.message


JINJA = (
    "{% for m in messages %}[{{ m.role }}{{ mark }}] {{ m.content | trim }}{% endfor %}"
    "{% if add_generation_prompt %}[next]{% endif %}"
)


def test_chat_template_of_recipe_renders_as_in_transformers(
    folder: Path, card: Card, tmp_path: Path
) -> None:
    wanted = [
        computed(
            card.score(card.chat(one, chat_template=JINJA, mark="!"), add_special_tokens=False)
        )
        for one in SAMPLES
    ]
    got = scores(folder, chat_template=JINJA, template_arguments={"mark": "!"})
    assert got == wanted
    # The same from a file beside the recipe.
    (tmp_path / "form.jinja").write_text(JINJA)
    (tmp_path / "r.toml").write_text(
        f"[models.rm]\nkind = 'sequence'\ncheckpoint = {json.dumps(str(folder))}\nhead = 'v_head'\n"
        "chat_template = 'form.jinja'\ntemplate_arguments = { mark = '!' }\n"
        "[holistic]\nmodel = 'rm'\n"
    )
    recipe = load_recipe(str(tmp_path / "r.toml"))
    assert [one.value for one in score(load(recipe.models["rm"]), SAMPLES)] == wanted
    (tmp_path / "form.jinja").unlink()
    with pytest.raises(RecipeError, match=r"chat_template names .*form\.jinja"):
        load_recipe(str(tmp_path / "r.toml"))


def test_chat_template_with_invalid_jinja_is_refused(folder: Path) -> None:
    with pytest.raises(RecipeError, match="chat_template is not valid Jinja, line 2"):
        scores(folder, chat_template="{{ messages }}\n{% for %}")


DATED = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}"
    "{% endif %}Today Date: {{ date_string }}\n" + tiny.CHAT_TEMPLATE
)


def test_template_arguments_date_is_rendered_and_in_the_fingerprint(
    folder: Path, card: Card
) -> None:
    wanted = [
        computed(
            card.score(
                card.chat(one, chat_template=DATED, date_string="1 Jan 2025"),
                add_special_tokens=False,
            )
        )
        for one in SAMPLES
    ]
    arguments = {"date_string": "1 Jan 2025"}
    assert scores(folder, chat_template=DATED, template_arguments=arguments) == wanted
    one, other = (
        load(
            SequenceSpec.model_validate(
                {
                    "checkpoint": str(folder),
                    "head": "v_head",
                    "chat_template": DATED,
                    "template_arguments": {"date_string": date},
                }
            )
        ).fingerprint
        for date in ("1 Jan 2025", "2 Jan 2025")
    )
    assert one != other


def test_suffix_is_kept_by_right_truncation(folder: Path) -> None:
    keys = {"checkpoint": str(folder), "head": "v_head", "truncation": "right", "max_tokens": 20}
    spec = SequenceSpec.model_validate(
        keys | {"template": "{prompt}: {completion}", "suffix": "<extra_0>"}
    )
    (features,) = load(spec).prepare([Sample("word " * 30, "answer")])
    assert not isinstance(features, SampleError)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    assert features.ids[-1] == tokenizer.convert_tokens_to_ids("<extra_0>")  # type: ignore[union-attr]
    assert features.num_tokens == 20


def test_template_with_prompt_twice_renders_as_in_polar(folder: Path, card: Card) -> None:
    template = "{prompt}\n{reference}<extra_0>{prompt}\n{completion}<|im_end|>"
    sample = Sample("What is 1 + 1?", "Two.", fields={"reference": "2"})
    text = "What is 1 + 1?\n2<extra_0>What is 1 + 1?\nTwo.<|im_end|>"
    assert scores(folder, [sample], template=template) == [
        computed(card.score(text, add_special_tokens=True))
    ]


def test_ask_without_generation_prompt_reads_pair_preference_model(tmp_path: Path) -> None:
    checkpoint = tiny.causal("llama", tmp_path)
    ask = "[CONTEXT] {prompt} [RESPONSE A] {completion} [RESPONSE B] {other}"
    sample = Sample("Who?", "Jane.", fields={"other": "Nobody."})
    text = "[CONTEXT] Who? [RESPONSE A] Jane. [RESPONSE B] Nobody."
    tokens = checkpoint.tokenizer
    a, b = (tokens(one, add_special_tokens=False).input_ids[-1] for one in ("A", "B"))
    for begins in (False, True):
        rendered = tokens.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=begins
        )
        ids = tokens(rendered, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.inference_mode():
            logits = checkpoint.model(ids).logits[0, -1]
        keys: dict[str, Any] = {} if begins else {"generation_prompt": False}
        spec = GenerativeSpec(
            checkpoint=str(tmp_path), ask=ask, positive=a, negative=b, activation="sigmoid", **keys
        )
        (got,) = score(load(spec), [sample])
        assert got.value == computed(torch.sigmoid(logits[a] - logits[b]).item())


def wordpiece(folder: Path) -> Any:
    """Save a tokenizer with BERT's ``[CLS] a [SEP] b [SEP]`` and its token types."""
    fast = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer()
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    train_wordpiece(fast, tiny.TEXT, special, size=400, unk="[UNK]")
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=fast,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=128,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


_ENCODER: Mapping[str, Any] = {
    "vocab_size": 500,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.3,
}
PAIRED = {
    "bert": hf.BertConfig(**_ENCODER),
    "electra": hf.ElectraConfig(embedding_size=32, **_ENCODER),
    "gpt2": hf.GPT2Config(
        vocab_size=500, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3, pad_token_id=0
    ),
}
PAIRS = [
    Sample("What is the capital of France?", "Paris."),
    Sample("Say nothing", ""),
    Sample("", "Only an answer"),
    Sample("ends in a letter", "begins with one"),
    Sample("ends in a space ", " and begins with one"),
    Sample("東京 🙂", "naïve [SEP] café"),
]


def paired(architecture: str, folder: Path, labels: int) -> tuple[Any, Any]:
    config = PAIRED[architecture]
    config.num_labels = labels
    torch.manual_seed(0)
    model = hf.AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(folder)
    if architecture == "gpt2":
        tiny.tokenizer(bos=False, eos=False).save_pretrained(folder)
    else:
        wordpiece(folder)
    return model, hf.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("architecture", list(PAIRED))
def test_pair_is_joined_by_the_tokenizer(architecture: str, tmp_path: Path) -> None:
    model, tokenizer = paired(architecture, tmp_path, 1)
    got = score(load(SequenceSpec(checkpoint=str(tmp_path), pair=True)), PAIRS)
    for sample, one in zip(PAIRS, got, strict=True):
        with torch.inference_mode():
            inputs = tokenizer(sample.prompt, sample.completion, return_tensors="pt")
            assert one.value == computed(model(**inputs).logits.item())
        assert one.num_tokens == inputs["input_ids"].shape[1]


def test_pair_with_multi_objective_gives_all_outputs(tmp_path: Path) -> None:
    model, tokenizer = paired("bert", tmp_path, 2)
    spec = MultiObjectiveSpec(checkpoint=str(tmp_path), pair=True, objectives=("a", "b"))
    (got,) = score(load(spec), PAIRS[:1])
    with torch.inference_mode():
        wanted = model(**tokenizer(PAIRS[0].prompt, PAIRS[0].completion, return_tensors="pt"))
    assert got.outputs == computed(dict(zip("ab", wanted.logits[0].tolist(), strict=True)))


def test_pair_over_the_limit_truncates_only_the_prompt(tmp_path: Path) -> None:
    model, tokenizer = paired("bert", tmp_path, 1)
    prompt = "the quick brown fox jumps over the lazy dog " * 6
    spec = SequenceSpec(checkpoint=str(tmp_path), pair=True, max_tokens=20)
    (got,) = score(load(spec), [Sample(prompt, "the dog")])
    assert got.truncated
    cut, answer = (
        tokenizer(one, add_special_tokens=False).input_ids for one in (prompt, "the dog")
    )
    kept = cut[len(cut) - (20 - 3 - len(answer)) :]
    ids = [1, *kept, 2, *answer, 2]
    types = [0] * (len(kept) + 2) + [1] * (len(answer) + 1)
    with torch.inference_mode():
        wanted = model(torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits.item()
    assert (got.value, got.num_tokens) == (computed(wanted), 20)


def test_pair_with_conversation_requires_turns(tmp_path: Path) -> None:
    model, tokenizer = paired("bert", tmp_path, 1)
    (refused,) = load(SequenceSpec(checkpoint=str(tmp_path), pair=True)).prepare(
        [Sample(CHAT, "the dog")]
    )
    assert isinstance(refused, SampleError)
    assert "requires `turns`" in refused.message
    turns = {"user": "{}", "assistant": "{}", "system": "{}", "separator": " | "}
    spec = SequenceSpec.model_validate({"checkpoint": str(tmp_path), "pair": True, "turns": turns})
    (got,) = score(load(spec), [Sample(CHAT, "the dog")])
    question = " | ".join(message.content for message in CHAT)
    with torch.inference_mode():
        wanted = model(**tokenizer(question, "the dog", return_tensors="pt")).logits.item()
    assert got.value == computed(wanted)


SPECS: TypeAdapter[Any] = TypeAdapter(ModelSpec)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"pair": True, "template": "{completion}"}, "remove template"),
        ({"pair": True, "suffix": "x"}, "remove suffix"),
        ({"turns": {"user": "Human:", "assistant": "{}"}}, "turns.user is 'Human:': write {} once"),
        ({"turns": {"user": "{}", "assistant": "{}"}, "chat_template": "x"}, "exclude each other"),
        (
            {"chat_template": "x", "template": "{completion}"},
            "chat_template requires the chat template",
        ),
        ({"template_arguments": {"messages": []}}, "which the server sets itself"),
        (
            {"template_arguments": {"a": 1}, "template": "{completion}"},
            "requires the chat template",
        ),
    ],
)
def test_spec_with_contradicting_text_keys_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SPECS.validate_python({"kind": "sequence", "checkpoint": "x", **keys})
    assert said in str(caught.value)


#: Recipes of before these keys -> what their fingerprints digested then.
BEFORE: Mapping[str, str] = {
    '{"kind":"sequence","checkpoint":"x"}': (
        '{"truncation":"prompt","max_tokens":null,"head":null,"mark_copied":false,'
        '"kind":"sequence","template":"chat","pooling":"last","activation":"none"}'
    ),
    '{"kind":"steps","checkpoint":"x"}': (
        '{"truncation":"prompt","max_tokens":null,"head":null,"mark_copied":false,"kind":"steps",'
        '"template":"chat","step_token":"<extra_0>","segmenter":"steps","labels":null,'
        '"positive_label":null,"reduction":"min"}'
    ),
    '{"kind":"multi-objective","checkpoint":"x","weights":{"a":1}}': (
        '{"truncation":"prompt","max_tokens":null,"head":null,"mark_copied":false,'
        '"kind":"multi-objective","template":"chat","pooling":"last","objectives":null,'
        '"activation":"none","weights":{"a":1.0},"gate_at":null}'
    ),
    '{"kind":"generative","checkpoint":"x","positive":0,"ask":"{prompt}"}': (
        '{"truncation":"prompt","max_tokens":null,"head":null,"mark_copied":false,'
        '"kind":"generative","template":"chat","ask":"{prompt}","generation_prompt":false,'
        '"positive":0,"negative":null,"measure":"logit","activation":"none"}'
    ),
    '{"kind":"segments","checkpoint":"x","template":"a","positive_label":"p",'
    '"negative_label":"n"}': (
        '{"truncation":"prompt","max_tokens":null,"head":null,"mark_copied":false,'
        '"kind":"segments","template":"a","segmenter":"sentences","separator":null,'
        '"pooling":"separator","positive_label":"p","negative_label":"n","labels":null}'
    ),
}


@pytest.mark.parametrize("spec", BEFORE)
def test_fingerprint_without_new_keys_is_unchanged(spec: str) -> None:
    made = SPECS.validate_python(json.loads(spec))
    left_out = frozenset({"checkpoint", "dtype", "trust_remote_code"})
    assert made.constants(left_out) == BEFORE[spec]


def test_fingerprint_with_new_key_changes() -> None:
    made = {
        SPECS.validate_python({"kind": kind, "checkpoint": "x", **more}).constants(frozenset())
        for kind, more in [
            ("sequence", {}),
            ("sequence", {"special_tokens": True}),
            ("sequence", {"special_tokens": False}),
            ("sequence", {"strip": True}),
            ("sequence", {"strip": "\n"}),
            ("sequence", {"suffix": "x"}),
            ("sequence", {"pair": True}),
            ("sequence", {"turns": {"user": "{}", "assistant": "{}"}}),
            ("sequence", {"chat_template": "x"}),
            ("sequence", {"template_arguments": {"a": 1}}),
            ("generative", {"positive": 0, "ask": "{prompt}"}),
            ("generative", {"positive": 0, "ask": "{prompt}", "generation_prompt": False}),
        ]
    }
    assert len(made) == 12
