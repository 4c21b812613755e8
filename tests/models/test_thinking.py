"""Thoughts, calls of tools and turns in six chat templates: scores, spans and rewards."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import tiny
import torch
from scoring import load, score
from tolerance import by_hand, computed

from alarm_models.combination.all_rules import RuleParams, Shaping
from alarm_models.combination.rewards import (
    AspectRule,
    ScoredSample,
    aspect_reward,
    combine_rewards,
    decide,
)
from alarm_models.combination.token_alignment import Placement
from alarm_models.errors import SampleError
from alarm_models.preprocessing.chat_templates import ChatFormat
from alarm_models.preprocessing.shown_sample import ViewRules
from alarm_models.preprocessing.templates import conversation
from alarm_models.preprocessing.tokenizer import Tokenizer
from alarm_models.recipe.specs import SequenceSpec
from alarm_models.types import Message, Reward, Sample, Score, SegmentScore, Span, ToolCall

_CALLS = (
    "{%- for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
)

#: In the manner of the published ones: what each does with thoughts, roles and tools.
TEMPLATES = {
    "qwen3": "{%- if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{%- endif %}"
    "{%- for m in messages %}{%- set content = m.content %}"
    "{%- set reasoning = m.reasoning_content or '' %}"
    "{%- if not reasoning and m.role == 'assistant' and '</think>' in content %}"
    "{%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1] %}"
    "{%- set reasoning = reasoning.lstrip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "<|im_start|>{{ m.role }}\n{%- if m.role == 'assistant' and (loop.last or reasoning) %}"
    "<think>\n{{ reasoning.strip('\n') }}\n</think>\n\n{%- endif %}{{ content }}" + _CALLS
    + "<|im_end|>\n{%- endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "qwen3-thinking": "{%- for m in messages %}{%- set content = m.content | trim %}"
    "{%- set reasoning = (m.reasoning_content or '') | trim %}"
    "{%- if not reasoning and '</think>' in content %}"
    "{%- set reasoning = content.split('</think>')[0].split('<think>')[-1] | trim %}"
    "{%- set content = content.split('</think>')[-1] | trim %}{%- endif %}"
    "<|im_start|>{{ m.role }}\n{%- if m.role == 'assistant' and loop.last %}"
    "<think>\n{{ reasoning }}\n</think>\n\n{% endif %}{{ content }}" + _CALLS
    + "<|im_end|>\n{%- endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    "llama3.1": "[system] Today Date: {{ strftime_now('%d %b %Y') }}\n"
    "{%- if tools %}{% for t in tools %}{{ t | tojson(indent=4) }}\n{% endfor %}{% endif %}"
    "{%- for m in messages %}{%- if m.tool_calls %}[assistant] "
    "{{ m.tool_calls[0].function | tojson }}[eot]{%- elif m.role == 'tool' %}[ipython] "
    "{{ m.content | tojson }}[eot]{%- else %}[{{ m.role }}] {{ m.content | trim }}[eot]"
    "{%- endif %}{%- endfor %}",
    "gemma3": "{%- set first = '' %}{%- if messages[0].role == 'system' %}"
    "{%- set first = messages[0].content + '\n\n' %}{%- set messages = messages[1:] %}{%- endif %}"
    "{%- for m in messages %}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{%- endif %}"
    "<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ first if loop.first }}"
    "{{ m.content | trim }}<end>\n{%- endfor %}",
    "gpt-oss": "{%- for m in messages %}{%- if m.reasoning_content %}<start>assistant<channel>"
    "analysis<message>{{ m.reasoning_content }}<end>{%- endif %}{%- for c in m.tool_calls or [] %}"
    "<start>assistant to={{ c.function.name }}<message>{{ c.function.arguments | tojson }}<call>"
    "{%- endfor %}{%- if m.content %}<start>{{ m.role }}<channel>final<message>{{ m.content }}"
    "<return>{%- endif %}{%- endfor %}",
    "deepseek-r1": "{{ bos_token }}{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "{%- set content = m.content %}{%- if '</think>' in content %}"
    "{%- set content = content.split('</think>')[-1] %}{%- endif %}<A>{{ content }}<e>"
    "{%- else %}<{{ m.role }}>{{ m.content }}{%- endif %}{%- endfor %}"
    "{% if add_generation_prompt %}<A><think>\n{% endif %}",
}  # fmt: skip

PROMPT = "What is the capital of France?"
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
CALL = ToolCall("look_up", '{"name": "Paris"}', "c1")


def assistant(content: str, **more: Any) -> Message:
    return Message("assistant", content, **more)


#: Twelve completions; the answer that remains without thoughts; the thoughts alone.
Case = tuple[str | tuple[Message, ...], Any, str]
ANSWER = "Paris is the capital."
ANSWERS: Mapping[str, Case] = {
    "none": ("", "", ""),
    "plain": (ANSWER, ANSWER, ""),
    "prefilled": (f"I know it.\n</think>\n\n{ANSWER}", ANSWER, "I know it."),
    "finished": (f"<think>\nI know it.\n</think>\n\n{ANSWER}", ANSWER, "I know it."),
    "unfinished": ("<think>\nI know it", "", "I know it"),
    "odd white space": (f"<think>I know it.</think>\t{ANSWER}", ANSWER, "I know it."),
    "two thoughts": (
        "<think>One.</think> Paris is <think>two</think>the capital.", ANSWER, "One.\n\ntwo",
    ),
    "reasoning": ((assistant(ANSWER, reasoning="I know it."),), ANSWER, "I know it."),
    "null content": ((assistant("", tool_calls=(CALL,)),), {"tool_calls": True}, ""),
    "call and answer": (
        (assistant(f"<think>Hm.</think>{ANSWER}", tool_calls=(CALL,)),),
        {"content": ANSWER, "tool_calls": True},
        "Hm.",
    ),
    "thought alone": ("<think>I know it.</think>\n", "", "I know it."),
    "answer before": (f"{ANSWER} <think>Am I sure", ANSWER, "Am I sure"),
}  # fmt: skip
TURNS = (
    assistant("<think>Look.</think>I look it up.", tool_calls=(CALL,)),
    Message("tool", 'the "capital" is Paris', tool_call_id="c1"),
    assistant(ANSWER),
)
OPENAI_CALL = {
    "id": "c1", "type": "function",
    "function": {"name": "look_up", "arguments": {"name": "Paris"}},
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tiny.Checkpoint:
    folder = tmp_path_factory.mktemp("thinking")
    made = tiny.sequence_classifier("llama", folder)
    made.tokenizer.save_pretrained(folder)
    return made


@pytest.fixture(scope="module")
def model_of(checkpoint: tiny.Checkpoint) -> Any:
    @cache
    def loaded(template: str, thinking: str = "strip") -> Any:
        return load(
            SequenceSpec(
                checkpoint=str(checkpoint.folder),
                chat_template=TEMPLATES[template],
                thinking=thinking,
            )
        )

    return loaded


def wanted(checkpoint: tiny.Checkpoint, template: str, messages: list[dict[str, Any]]) -> float:
    """Score a conversation with transformers alone."""
    text = checkpoint.tokenizer.apply_chat_template(
        messages, chat_template=TEMPLATES[template], tokenize=False
    )
    return plainly(checkpoint, text)


def plainly(checkpoint: tiny.Checkpoint, text: str) -> float:
    ids = checkpoint.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.inference_mode():
        return checkpoint.model(input_ids=ids).logits.item()


def by_openai(answer: Any) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"role": "assistant", "content": answer}
    calls = {"tool_calls": [OPENAI_CALL]} if answer.get("tool_calls") else {}
    return {"role": "assistant", "content": answer.get("content", ""), **calls}


DATED = ("llama3.1",)


@pytest.mark.numeric
@pytest.mark.parametrize("template", [name for name in TEMPLATES if name not in DATED])
def test_stripped_completion_scores_as_its_answer_in_transformers(
    template: str, checkpoint: tiny.Checkpoint, model_of: Any
) -> None:
    model = model_of(template)
    for name, (completion, answer, thought) in ANSWERS.items():
        (got,) = score(model, [Sample(PROMPT, completion)])
        messages = [{"role": "user", "content": PROMPT}, by_openai(answer)]
        assert got.value == computed(wanted(checkpoint, template, messages)), name
        assert ("thinking" in got.omitted) == bool(thought), name


@pytest.mark.numeric
@pytest.mark.parametrize("template", [name for name in TEMPLATES if name not in DATED])
def test_kept_completion_scores_as_transformers_renders_it(
    template: str, checkpoint: tiny.Checkpoint, model_of: Any
) -> None:
    model = model_of(template, "keep")
    for name, (completion, answer, thought) in ANSWERS.items():
        if "Am I sure" in thought or name == "unfinished":
            continue
        (got,) = score(model, [Sample(PROMPT, completion)])
        given: Any = by_openai(completion if isinstance(completion, str) else answer)
        if name == "reasoning":
            given["reasoning_content"] = thought
        elif name == "call and answer":
            given["content"] = f"<think>Hm.</think>{ANSWER}"
        messages = [{"role": "user", "content": PROMPT}, given]
        assert got.value == computed(wanted(checkpoint, template, messages)), name


@pytest.mark.numeric
def test_kept_unfinished_thought_has_no_empty_thought_before_it(
    checkpoint: tiny.Checkpoint, model_of: Any
) -> None:
    (got,) = score(model_of("qwen3", "keep"), [Sample(PROMPT, "<think>\nI know it")])
    messages = [{"role": "user", "content": PROMPT}, by_openai("x")]
    rendered = checkpoint.tokenizer.apply_chat_template(
        messages, chat_template=TEMPLATES["qwen3"], tokenize=False
    )
    head, end = re.split(r"<think>\s*</think>\s*x", rendered)
    assert got.value == computed(plainly(checkpoint, f"{head}<think>\nI know it{end}"))


@pytest.mark.parametrize("thinking", ["strip", "keep", "only"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_span_of_completion_is_not_empty_where_text_remains(
    template: str, thinking: str, checkpoint: tiny.Checkpoint
) -> None:
    rules = SequenceSpec(checkpoint="x", thinking=thinking).view_rules
    tokenizer = Tokenizer(checkpoint.folder)
    for name, (completion, _, _) in ANSWERS.items():
        shown = rules.view(Sample(PROMPT, completion)).sample
        got = tokenizer.render_chat(conversation(shown), chat=ChatFormat(TEMPLATES[template]))
        assert got.text[got.prompt.start : got.prompt.end] == PROMPT, name
        is_dropped = name == "thought alone" and "thinking" in got.omitted
        if shown.completion_text.strip() and not is_dropped:
            core = ANSWER if thinking == "strip" else "I know it"
            part = got.text[got.completion.start : got.completion.end]
            assert part.strip(), name
            if core in shown.completion_text and core in got.text:
                assert core in part, name


def test_template_that_drops_thoughts_says_so(model_of: Any) -> None:
    (got,) = score(model_of("deepseek-r1", "keep"), [Sample(PROMPT, f"<think>Hm.</think>{ANSWER}")])
    assert got.omitted == ("thinking",)


@pytest.mark.numeric
def test_only_scores_the_thought(checkpoint: tiny.Checkpoint, model_of: Any) -> None:
    model = model_of("qwen3-thinking", "only")
    for name, (completion, _, thought) in ANSWERS.items():
        (got,) = score(model, [Sample(PROMPT, completion)])
        messages = [{"role": "user", "content": PROMPT}, by_openai(thought)]
        assert got.value == computed(wanted(checkpoint, "qwen3-thinking", messages)), name


@pytest.mark.numeric
@pytest.mark.parametrize("template", ["qwen3", "qwen3-thinking", "gpt-oss", "deepseek-r1"])
def test_completion_of_several_messages_scores_as_in_transformers(
    template: str, checkpoint: tiny.Checkpoint, model_of: Any
) -> None:
    (got,) = score(model_of(template), [Sample(PROMPT, TURNS, tools=(TOOL,))])
    said = {"role": "assistant", "content": "I look it up.", "tool_calls": [OPENAI_CALL]}
    result = {"role": "tool", "content": 'the "capital" is Paris', "tool_call_id": "c1"}
    messages = [{"role": "user", "content": PROMPT}, said, result, by_openai(ANSWER)]
    text = checkpoint.tokenizer.apply_chat_template(
        messages, tools=[TOOL], chat_template=TEMPLATES[template], tokenize=False
    )
    assert got.value == computed(plainly(checkpoint, text))
    assert ("tools" in got.omitted) == (template != "qwen3")
    assert ("tool_calls" in got.omitted) == (template == "deepseek-r1")
    assert got.judged == (Span(20, 33), Span(59, 80))


def test_template_that_raises_fails_its_sample(model_of: Any) -> None:
    fine, refused = model_of("gemma3").prepare([Sample(PROMPT, ANSWER), Sample(PROMPT, TURNS)])
    assert not isinstance(fine, SampleError)
    assert isinstance(refused, SampleError)
    assert (refused.code, "must alternate" in refused.message) == ("invalid_sample", True)


PREFILLS = {
    "answer": ("Paris is ", "the capital.", "Paris is the capital."),
    "thought": ("<think>\n", "I know it.</think>\n\nParis.", "Paris."),
}


@pytest.mark.numeric
@pytest.mark.parametrize("name", PREFILLS)
@pytest.mark.parametrize("template", ["qwen3", "gemma3"])
def test_continued_message_scores_as_one_message(
    template: str, name: str, checkpoint: tiny.Checkpoint, model_of: Any
) -> None:
    begun, rest, answer = PREFILLS[name]
    prompt = (Message("user", PROMPT), assistant(begun))
    sample = Sample(prompt, rest, continue_final_message=True)
    (got,) = score(model_of(template), [sample])
    messages = [{"role": "user", "content": PROMPT}, by_openai(answer)]
    assert got.value == computed(wanted(checkpoint, template, messages))


@pytest.mark.parametrize(
    "keys",
    [
        *({"chat_template": TEMPLATES[name]} for name in ("qwen3", "llama3.1")),
        {"turns": {"user": "U: {}\n", "assistant": "A: {}\n"}},
        {"template": "Human: {prompt}\nAssistant: {completion}"},
    ],
    ids=["qwen3", "llama3.1", "turns", "text"],
)
def test_span_of_continued_completion_begins_after_the_prefill(
    keys: dict[str, Any], checkpoint: tiny.Checkpoint
) -> None:
    prompt = (Message("user", PROMPT), assistant("Paris is "))
    sample = Sample(prompt, "the capital.", continue_final_message=True)
    spec = SequenceSpec.model_validate({"checkpoint": str(checkpoint.folder)} | keys)
    rendered = load(spec)._texts.render(sample)
    assert "Paris is the capital." in rendered.text
    assert rendered.text[slice(*rendered.prompt)] == PROMPT
    assert rendered.text[slice(*rendered.completion)] == "the capital."


def test_message_that_cannot_be_continued_fails_its_sample(model_of: Any) -> None:
    prompts = (PROMPT, (Message("user", PROMPT),), (assistant("", tool_calls=(CALL,)),))
    samples = [Sample(prompt, ANSWER, continue_final_message=True) for prompt in prompts]
    for found in model_of("qwen3").prepare(samples):
        assert isinstance(found, SampleError)
        assert found.message.startswith("continue_final_message requires a prompt of messages")


def test_message_of_an_unknown_role_fails_where_the_template_leaves_it_out(
    checkpoint: tiny.Checkpoint,
) -> None:
    roles = "{% for m in messages %}{{ m.content if m.role in ['user', 'assistant'] }}{% endfor %}"
    spec = SequenceSpec(checkpoint=str(checkpoint.folder), chat_template=roles)
    unknown = (Message("bot", ANSWER),)
    refused, in_prompt = load(spec).prepare(
        [Sample(PROMPT, unknown), Sample((Message("human", PROMPT),), ANSWER)]
    )
    for found, role in ((refused, "'bot'"), (in_prompt, "'human'")):
        assert isinstance(found, SampleError)
        assert (found.code, role in found.message) == ("invalid_sample", True)
    any_role = spec.model_copy(update={"chat_template": TEMPLATES["qwen3"]})
    (shown,) = load(any_role).prepare([Sample(PROMPT, unknown)])
    assert not isinstance(shown, SampleError)


@pytest.mark.parametrize("arguments", ['{"name": "Par', "[1]"])
def test_malformed_arguments_are_a_text_or_named_in_the_error(
    arguments: str, checkpoint: tiny.Checkpoint
) -> None:
    tokenizer = Tokenizer(checkpoint.folder)
    call = ToolCall("look_up", arguments)
    messages = (Message("user", PROMPT), assistant("", tool_calls=(call,)))
    written = tokenizer.render_chat(messages, chat=ChatFormat(TEMPLATES["qwen3"]))
    assert json.dumps(arguments) in written.text
    items = "{% for m in messages %}{% for c in m.tool_calls %}{% for k in c.function.arguments"
    items += " | items %}{{ k }}{% endfor %}{% endfor %}{{ m.content }}{% endfor %}"
    with pytest.raises(
        SampleError, match=r"^message 2 of 2 \(role 'assistant'\) calls .* item pairs"
    ):
        tokenizer.render_chat(messages, chat=ChatFormat(items))


def test_image_is_unsupported_unless_the_recipe_omits_it(checkpoint: tiny.Checkpoint) -> None:
    sample = Sample((Message("user", "See.", other_parts=("image_url",)),), ANSWER)
    spec = SequenceSpec(checkpoint=str(checkpoint.folder), chat_template=TEMPLATES["qwen3"])
    (refused,) = load(spec).prepare([sample])
    assert isinstance(refused, SampleError)
    assert refused.code == "unsupported_content"
    assert "'image_url'" in refused.message
    (got,) = score(load(spec.model_copy(update={"unsupported_content": "omit"})), [sample])
    assert got.omitted == ("content_parts",)


RULE = AspectRule(1.0, -1.0, 0.0, 1.0, 1.0, 0.0, Shaping.NONE)


def tokens_of(text: str) -> tuple[Span, ...]:
    """Return a token for each three characters, and an end of text."""
    starts = range(0, len(text), 3)
    return (*(Span(at, min(at + 3, len(text))) for at in starts), Span(len(text), len(text)))


@pytest.mark.parametrize("name", ANSWERS)
def test_dense_reward_sums_to_the_reward_on_a_judged_token(name: str, model_of: Any) -> None:
    completion = ANSWERS[name][0]
    sample = Sample(PROMPT, completion)
    text = sample.completion_text
    sample = Sample(PROMPT, completion, token_offsets=tokens_of(text))
    (got,) = score(model_of("qwen3-thinking"), [sample])
    reward = aspect_reward(got, RULE, sample)
    assert sum(reward.token_rewards or ()) == by_hand(reward.reward)
    (place,) = [at for at, one in enumerate(reward.token_rewards or ()) if one]
    start, _ = (sample.token_offsets or ())[place]
    if name == "answer before":
        assert text[: start + 3].startswith(ANSWER[:-2])
        assert start < text.index("<think>")
    else:
        assert place == len(sample.token_offsets or ()) - 1


def test_turns_pay_each_message_on_its_last_token_and_tool_results_nothing() -> None:
    sample = Sample(PROMPT, TURNS)
    first, second = sample.turns
    text = sample.completion_text
    ends = [first.end, second.end]
    offsets = sorted([*tokens_of(text), *(Span(end, end) for end in ends)])
    sample = Sample(PROMPT, TURNS, token_offsets=tuple(offsets))
    judged = Score(
        None,
        (SegmentScore(first, "good", 2.0, None), SegmentScore(second, "good", 3.0, None)),
        0,
        False,
        judged=(first, second),
    )
    rule = AspectRule(1.0, -1.0, 0.0, 1.0, 1.0, 0.0, Shaping.NONE, placement=Placement.TURN_ENDS)
    reward = aspect_reward(judged, rule, sample)
    paid = {at: one for at, one in enumerate(reward.token_rewards or ()) if one}
    assert list(paid.values()) == [2.0, 3.0]
    places = list(paid)
    assert offsets[places[0]] == Span(first.end, first.end)
    assert places[1] == len(offsets) - 1
    per_token = AspectRule(1.0, -1.0, 0.0, 1.0, 1.0, 0.0, Shaping.NONE, placement=Placement.TOKENS)
    errors = Score(0.0, (), 0, False, judged=(first, second))
    values = aspect_reward(errors, per_token, sample).token_rewards or ()
    for token, value in zip(offsets, values, strict=True):
        assert (value == 0) == (
            first.end < token.end and token.start >= first.end and token.end <= second.start
        ), token


@pytest.mark.parametrize("begun", ["<think>\n", "<think>\nLet me"])
@pytest.mark.parametrize(
    ("rest", "answer", "thought"),
    [(" see.", "", " see."), (" see.</think>\nParis.", "Paris.", " see.")],
)
def test_thought_that_a_prefill_begins_goes_on_to_its_tag_or_the_end(
    begun: str, rest: str, answer: str, thought: str
) -> None:
    prompt = (Message("user", PROMPT), assistant(begun))
    sample = Sample(prompt, rest, continue_final_message=True)
    shown = ViewRules().view(sample)
    assert (shown.sample.completion, shown.shown and shown.shown.omitted) == (answer, ("thinking",))
    only = ViewRules(thinking="only").view(sample)
    assert only.sample.completion == thought.strip()
    assert ViewRules().view(replace(sample, continue_final_message=False)).sample.completion == (
        answer or rest
    )


@pytest.mark.parametrize("first", ["", "be kind"])
def test_prompt_begins_after_the_header_of_an_empty_message(
    first: str, checkpoint: tiny.Checkpoint
) -> None:
    """Truncation drops the start of the prompt: the header and BOS before it must stay."""
    template = "[CLS]{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    messages = (Message("system", first), Message("user", PROMPT), assistant("Paris."))
    chat = ChatFormat(template)
    got = Tokenizer(checkpoint.folder).render_chat(messages, num_prompt=2, chat=chat)
    assert got.text[got.prompt.start :].startswith(first or PROMPT)
    assert got.text[: got.prompt.end].endswith(PROMPT)


@pytest.mark.parametrize("placement", [Placement.SEGMENT_ENDS, Placement.TURN_ENDS])
def test_segment_with_a_verdict_and_no_score_counts_with_any_placement(
    placement: Placement,
) -> None:
    rule = AspectRule(0.5, -0.5, 0.0, 1.0, 1.0, 0.0, Shaping.NONE, placement=placement)
    sample = Sample(PROMPT, "a bad b", token_offsets=(Span(0, 1), Span(2, 5), Span(6, 7)))
    wrong = SegmentScore(Span(2, 5), "RULE", None, False)
    unread = SegmentScore(Span(6, 7), None, None, None)
    reward = aspect_reward(Score(0.0, (wrong, unread), 0, False), rule, sample)
    assert sum(reward.token_rewards or ()) == -0.5


def test_arguments_of_calls_are_objects_for_templates(checkpoint: tiny.Checkpoint) -> None:
    template = (
        "{% for m in messages %}{{ m.tool_calls[0].function.arguments.name if m.tool_calls }}"
        "{% endfor %}"
    )
    messages = (Message("user", PROMPT), assistant("", tool_calls=(CALL,)))
    got = Tokenizer(checkpoint.folder).render_chat(messages, chat=ChatFormat(template))
    assert got.text == "Paris"
    assert json.loads(CALL.arguments) == {"name": "Paris"}


def test_reward_of_a_thought_lands_on_its_last_token_and_says_what_was_omitted() -> None:
    text = "<think>Hm.</think>Paris."
    offsets = tuple(Span(at, at + 1) for at in range(len(text)))
    sample = Sample(PROMPT, text, token_offsets=offsets)
    params = RuleParams("weighted_sum", 0.0, 1.0, 0.0, 1.0, {"length": 1.0})
    holistic = Score(2.0, None, 0, False, omitted=("answer",), judged=(Span(7, 10),))
    aspect = aspect_reward(Score(3.0, None, 0, False, omitted=("thinking",)), RULE, sample)
    scored = ScoredSample(sample, decide(holistic, params), {"length": aspect})
    (reward,) = combine_rewards([scored], params)
    assert isinstance(reward, Reward)
    paid = {at: one for at, one in enumerate(reward.token_rewards or ()) if one}
    assert paid == {9: by_hand(2.0), len(text) - 1: by_hand(3.0)}
    assert reward.reward == by_hand(5.0)
    assert reward.omitted == ("answer", "thinking")
