"""Chat templates are deterministic and bounded in time and output."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import tiny
import torch
from scoring import load, score
from tolerance import computed

from alarm_models.errors import CheckpointError, SampleError
from alarm_models.preprocessing import chat_templates, template_limits
from alarm_models.preprocessing.chat_templates import draws_randomly
from alarm_models.preprocessing.tokenizer import Tokenizer
from alarm_models.recipe.specs import SequenceSpec
from alarm_models.reward_models.registry import CheckpointState, Loader
from alarm_models.types import Message, Sample

TURNS = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
#: As Llama 3.1's: the caller's date, else the clock's, else a fixed one.
LLAMA = (
    "{% if date_string is not defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}"
    "{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}"
    "Today Date: {{ date_string }}\n"
)
SAMPLE = Sample("Who wrote Emma?", "Jane.")


def saved(folder: Path, template: str) -> tiny.Checkpoint:
    tiny.sequence_classifier("llama", folder)
    tokenizer = tiny.tokenizer(bos=True, eos=False)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tiny.Checkpoint(
        folder, tiny.sequence_classifier("llama", folder / "again").model, tokenizer
    )


@pytest.mark.parametrize(
    "dated",
    [
        LLAMA,
        "Today is {{ strftime_now('%d %b %Y %H:%M:%S %f') }}\n",
        "{% set now = strftime_now %}{% set form = '%d %b %Y %f' %}Today is {{ now(form) }}\n",
        "{% macro today() %}{{ strftime_now('%d %b %Y %f') }}{% endmacro %}{{ today() }}\n",
    ],
    ids=["llama", "microseconds", "by another name", "in a macro"],
)
def test_chat_template_with_strftime_now_gets_the_fixed_date(dated: str, tmp_path: Path) -> None:
    saved(tmp_path, dated + TURNS)
    tokenizer = Tokenizer(tmp_path)
    messages = (Message("user", "Who?"), Message("assistant", "Jane."))
    first = tokenizer.render_chat(messages).text
    assert "26 Jul 2024" in first
    # Others' templates compiled in between, as many as transformers keeps.
    other = tiny.tokenizer(bos=True, eos=False)
    for number in range(200):
        turn = {"role": "user", "content": "Who?"}
        other.apply_chat_template([turn], chat_template=f"{number}", tokenize=False)
    assert tokenizer.render_chat(messages).text == first


@pytest.mark.numeric
def test_score_of_dated_template_is_of_the_fixed_date(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, LLAMA + TURNS)
    (got,) = score(load(SequenceSpec(checkpoint=str(tmp_path))), [SAMPLE])
    text = "Today Date: 26 Jul 2024\n[user] Who wrote Emma?\n[assistant] Jane.\n"
    ids = torch.tensor([checkpoint.tokenizer(text, add_special_tokens=False).input_ids])
    with torch.inference_mode():
        wanted = checkpoint.model(input_ids=ids).logits.item()
    assert got.value == computed(wanted)


def test_fingerprint_of_dated_template_includes_the_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, LLAMA + TURNS)
    spec = SequenceSpec(checkpoint=str(tmp_path))
    dated = load(spec).fingerprint
    assert CheckpointState(torch.device("cpu")).matches(spec, {}, dated)
    text = spec.model_copy(update={"template": "{prompt} {completion}"})
    undated = load(text).fingerprint
    monkeypatch.setattr(
        "alarm_models.reward_models.registry.FIXED_DATE", datetime(2025, 1, 1, tzinfo=UTC)
    )
    assert load(spec).fingerprint != dated
    assert load(text).fingerprint == undated


@pytest.mark.parametrize(
    "template", [TURNS + "{{ ['a', 'b'] | random }}", TURNS + "{{ lipsum(n=1) }}"]
)
def test_chat_template_with_random_text_is_refused(template: str, tmp_path: Path) -> None:
    saved(tmp_path, template)
    with pytest.raises(CheckpointError, match="give a text in `template`"):
        load(SequenceSpec(checkpoint=str(tmp_path)))
    load(SequenceSpec(checkpoint=str(tmp_path), template="{prompt} {completion}"))


def test_chat_template_with_random_as_plain_text_is_accepted() -> None:
    assert not draws_randomly("A random user asks: {{ messages[0].content }}")


def test_fingerprint_with_remote_code_includes_the_code(tmp_path: Path) -> None:
    saved(tmp_path, TURNS)

    def fingerprint(*, trusted: bool) -> str:
        spec = SequenceSpec(checkpoint=str(tmp_path), trust_remote_code=trusted)
        return Loader(torch.device("cpu")).load(spec, {}).fingerprint

    code = tmp_path / "modeling_own.py"
    code.write_text("# before")
    before = fingerprint(trusted=True), fingerprint(trusted=False)
    code.write_text("# after")
    after = fingerprint(trusted=True), fingerprint(trusted=False)
    assert before[0] != after[0]
    assert before[1] == after[1]


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
MESSAGES = (Message("user", "loop"), Message("assistant", "Jane."))


@pytest.mark.parametrize(
    "loops",
    [ENDLESS, "{% for a in messages[0].content * 9999 %}{% for b in range(99999) %}{% endfor %}"
     "{% endfor %}", "{% macro again() %}" + ENDLESS + "{% endmacro %}{{ again() }}"],
)  # fmt: skip
def test_chat_template_with_endless_loop_fails_only_its_sample(
    loops: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_templates, "_TIMEOUT_S", 0.05)
    saved(tmp_path, "{% if messages[0].content == 'loop' %}" + loops + "{% endif %}" + TURNS)
    tokenizer = Tokenizer(tmp_path)
    with pytest.raises(SampleError, match=r"took longer than 0\.05 s"):
        tokenizer.render_chat(MESSAGES)
    monkeypatch.setattr(chat_templates, "_TIMEOUT_S", 60)
    assert tokenizer.render_chat((Message("user", "a"), MESSAGES[1])).text.startswith("[user] a")


def test_chat_template_with_oversized_output_fails_only_its_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_limits, "_MIN_CHARS", 0)
    saved(tmp_path, "{% for _ in range(9000) %}{{ messages[0].content }}{% endfor %}" + TURNS)
    with pytest.raises(SampleError, match=r"would make more than \d+ characters"):
        Tokenizer(tmp_path).render_chat(MESSAGES)
