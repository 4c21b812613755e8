"""Chat templates in hooks: split as by the server's URLs, or an error."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import BaseModel, RootModel

import alarm_client.chat
import alarm_service.api.compat
from alarm_client.trainers import nemo_rl, openrlhf, slime, trlx
from alarm_client.trainers._inputs import (
    completion_of,
    decoded_prompt,
    plain_samples,
    prompt_of,
    template_of,
    without_end_tokens,
)
from alarm_client.trainers._settings import TrainerDefaults, read_settings
from alarm_client.types import Sample
from alarm_models.types import Message
from alarm_service.api.compat.conversation import pair_texts, split_query

LLAMA_3 = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
QUESTION = [{"role": "user", "content": "Q"}]
DEFAULTS = TrainerDefaults("here", timeout=1.0)


@pytest.mark.parametrize("name", ["templates", "conversation"])
def test_client_chat_modules_equal_those_of_the_server(name: str) -> None:
    server, client = (
        (Path(package.__path__[0]) / f"{name}.py").read_text()
        for package in (alarm_service.api.compat, alarm_client.chat)
    )
    server = server.replace("from alarm_models.types ", "from alarm_client.chat ")
    assert client == server.replace("alarm_service.api.compat.", "alarm_client.chat.")


def plain(content: object) -> object:
    """A prompt or completion of either package, as JSON has it."""
    if isinstance(content, tuple):
        return [{"role": one.role, "content": one.content} for one in content]
    return content


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        (LLAMA_3, "A.<|eot_id|><|finetune_right_pad_id|>"),
        ("<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n<think>\n", "Hm.</think>A."),
        ("<|start|>user<|message|>Q<|end|><|start|>assistant", "<|channel|>final<|message|>A."),
        (
            "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
            "A.<|im_end|>\n<|im_start|>tool\nT",
        ),
        ("[|user|]Q\n[|assistant|]", "A.[|endofturn|]"),
        ("<s>[INST] Q [/INST]", "Write <s>old</s></s>"),
    ],
)
def test_hooks_send_the_same_samples_as_urls(prompt: str, completion: str) -> None:
    (sample,) = plain_samples([Sample(prompt=prompt, completion=completion)], None, "here")
    texts = pair_texts(prompt, completion, None)
    assert (sample.prompt, sample.completion) == (plain(texts.prompt), plain(texts.completion))
    assert texts.prompt == (Message("user", "Q"),)


def test_openrlhf_query_with_other_padding_is_split(rewards) -> None:
    query = "<|end_of_text|><|end_of_text|>" + LLAMA_3 + "A.<|eot_id|>"
    openrlhf.reward_func([query], [LLAMA_3], [None])
    assert rewards.samples == [{"prompt": QUESTION, "completion": "A."}]
    texts = split_query(query, LLAMA_3, None)
    assert (plain(texts.prompt), texts.completion) == (QUESTION, "A.")


async def test_slime_and_trlx_remove_chat_markup(rewards) -> None:
    asked = SimpleNamespace(prompt=LLAMA_3, response="A.<|eot_id|>", metadata={}, label=None)
    await slime.custom_rm(SimpleNamespace(reward_key=None), asked)
    trlx.reward_fn(samples=[LLAMA_3 + "A."], prompts=[LLAMA_3], outputs=["A.<|eot_id|>"])
    assert [(one["prompt"], one["completion"]) for one in rewards.samples] == [(QUESTION, "A.")] * 2


def test_nemo_rl_messages_in_template_are_split_as_text(rewards) -> None:
    log = [{"role": "user", "content": LLAMA_3}]
    (sample,) = plain_samples([Sample(prompt=log, completion="A.<|eot_id|>")], None, "nemo_rl")
    assert (sample.prompt, sample.completion) == (QUESTION, "A.")
    head, tail = LLAMA_3.split("<|start_header_id|>assistant")
    parts = [
        {"role": "system", "content": head.replace("user", "system").replace("Q", "S")},
        {"role": "user", "content": f"{head}<|start_header_id|>assistant{tail}"},
    ]
    (sample,) = plain_samples([Sample(prompt=parts, completion="A.")], None, "nemo_rl")
    assert sample.prompt == [{"role": "system", "content": "S"}, *QUESTION]
    assert nemo_rl.DEFAULTS.trainer == "nemo_rl"


def test_answer_started_in_prompt_shifts_token_offsets() -> None:
    prompt = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n<think>\n"
    dense = Sample(prompt=prompt, completion="Hm.", token_offsets=[[0, 2], [2, 3]])
    (sample,) = plain_samples([dense], None, "here")
    assert sample.completion == "<think>\nHm."
    assert sample.token_offsets == [(8, 10), (10, 11)]


@pytest.mark.parametrize("prompt", ["Human: Q\n\nAssistant:", "<s>old</s> is <b>old</b>", "Q"])
def test_plain_prompt_is_sent_unchanged(prompt: str) -> None:
    sample = Sample(prompt=prompt, completion="A.</s>")
    assert plain_samples([sample], None, "here") == [sample]


def test_unknown_chat_template_error_names_the_setting() -> None:
    prompt = "<|foo_start|>user\nQ<|foo_end|><|foo_start|>assistant\n"
    sample = Sample(prompt=prompt, completion="A.<|foo_end|>")
    with pytest.raises(ValueError, match=r"here: sample 0 .*'<\|foo_start\|>'.*ALARM_TEMPLATE"):
        plain_samples([sample], None, "here")
    assert plain_samples([sample], template_of("plain"), "here")[0].prompt == prompt
    own = template_of(
        '{"user": "<|foo_start|>user\\n", "assistant": "<|foo_start|>assistant\\n",'
        ' "end": ["<|foo_end|>"]}'
    )
    (split,) = plain_samples([sample], own, "here")
    assert (split.prompt, split.completion) == (QUESTION, "A.")


def test_template_setting_applies_to_every_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_settings(DEFAULTS).template is None
    assert read_settings(DEFAULTS, {"template": "chatml"}).template == "chatml"
    monkeypatch.setenv("ALARM_TEMPLATE", "plain")
    assert read_settings(DEFAULTS).template == "plain"
    described = {"user": "Human:", "assistant": "Assistant:"}
    assert template_of(read_settings(DEFAULTS, {"template": described}).template) is not None
    for wrong in ("chatlm", '{"user": "U"}', '{"assistant": "A", "ends": []}', "[]"):
        with pytest.raises(ValueError, match=r"template \(or ALARM_TEMPLATE\): must"):
            read_settings(DEFAULTS, {"template": wrong})


def test_decoded_prompt_keeps_special_tokens_between_turns() -> None:
    def decode(ids: list[int], skip_special_tokens: bool) -> str:
        return "user Q assistant" if skip_special_tokens else LLAMA_3 if ids else "<s>Q"

    tokenizer = SimpleNamespace(decode=decode)
    assert decoded_prompt(tokenizer, [1]) == LLAMA_3
    assert decoded_prompt(tokenizer, []) == "user Q assistant"


class Reply(BaseModel):
    role: str = "assistant"
    content: str | list[dict[str, str]] | None = None
    reasoning_content: str | None = None


@dataclass
class Turn:
    role: str
    content: str


@pytest.mark.parametrize(
    "value",
    [
        Reply(content="yes"),
        [Reply(role="user", content="Q"), Reply(content="yes")],
        (Turn("user", "Q"), Turn("assistant", "yes")),
        [Reply(content=[{"type": "text", "text": "yes"}])],
        SimpleNamespace(message=Reply(content="yes")),
        RootModel[list[Reply]]([Reply(content="yes")]),
        {"message": Turn("assistant", "yes")},
        iter([Turn("assistant", "yes")]),
    ],
)
def test_prompt_accepts_message_objects(value: object) -> None:
    assert completion_of(value) == "yes"


@pytest.mark.parametrize("value", [7, b"yes", [7], [["role", "user"]], [{"content": 7}], object()])
def test_completion_that_is_not_a_message_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"a role and a content|a string or a list of parts"):
        completion_of(value)


def test_prompt_of_objects_becomes_plain_messages() -> None:
    assert prompt_of([Reply(role="user", content="Q")]) == QUESTION
    assert prompt_of(Turn("user", "Q")) == QUESTION
    with pytest.raises(TypeError, match="a prompt must be a string or messages"):
        prompt_of(7)


def test_without_end_tokens_removes_known_end_tokens() -> None:
    assert without_end_tokens("A.<|eom_id|>") == "A."
    assert without_end_tokens("Write <s>old</s><|im_end|>") == "Write <s>old</s>"
