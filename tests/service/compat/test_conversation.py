from typing import Any

import pytest

from alarm_models.types import Message
from alarm_service.api.compat.conversation import (
    SplitError,
    Texts,
    answer_of,
    pair_texts,
    split_query,
    split_text,
    without_ends,
)
from alarm_service.api.compat.templates import TEMPLATES, marked

CHATML = "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n"
HUMAN = marked(user="Human:", assistant="Assistant:", system=None, ends=[])


def turns(*texts: str) -> tuple[Message, ...]:
    """A conversation up to a user's turn; of an even number, the first is the system's."""
    roles = ["system", "user", "assistant", "user"]
    return tuple(map(Message, roles[1:] if len(texts) % 2 else roles, texts))


#: By template: a conversation with a system's turn and two of the user's, up to the assistant's.
PROMPTS = {
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ?<|im_end|>\n"
    "<|im_start|>assistant\nA.<|im_end|>\n<|im_start|>user\nR?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "phi-4": "<|im_start|>system<|im_sep|>S<|im_end|><|im_start|>user<|im_sep|>Q?<|im_end|>"
    "<|im_start|>assistant<|im_sep|>A.<|im_end|><|im_start|>user<|im_sep|>R?<|im_end|>"
    "<|im_start|>assistant<|im_sep|>",
    "llama-2": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ? [/INST] A. </s><s>[INST] R? [/INST]",
    "mistral": "<s>[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][INST]Q?[/INST]A.</s>[INST]R?[/INST]",
    "llama-3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nQ?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nR?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "llama-4": "<|begin_of_text|><|header_start|>system<|header_end|>\n\nS<|eot|>"
    "<|header_start|>user<|header_end|>\n\nQ?<|eot|>"
    "<|header_start|>assistant<|header_end|>\n\nA.<|eot|>"
    "<|header_start|>user<|header_end|>\n\nR?<|eot|>"
    "<|header_start|>assistant<|header_end|>\n\n",
    "gemma": "<bos><start_of_turn>system\nS<end_of_turn>\n<start_of_turn>user\nQ?<end_of_turn>\n"
    "<start_of_turn>model\nA.<end_of_turn>\n<start_of_turn>user\nR?<end_of_turn>\n"
    "<start_of_turn>model\n",
    "deepseek": "<｜begin▁of▁sentence｜>S<｜User｜>Q?<｜Assistant｜>A.<｜end▁of▁sentence｜>"
    "<｜User｜>R?<｜Assistant｜>",
    "phi-3": "<|system|>\nS<|end|>\n<|user|>\nQ?<|end|>\n<|assistant|>\nA.<|end|>\n"
    "<|user|>\nR?<|end|>\n<|assistant|>\n",
    "zephyr": "<|system|>\nS</s>\n<|user|>\nQ?</s>\n<|assistant|>\nA.</s>\n"
    "<|user|>\nR?</s>\n<|assistant|>\n",
    "glm-4": "[gMASK]<sop><|system|>\nS<|user|>\nQ?<|assistant|>\nA.<|user|>\nR?<|assistant|>\n",
    "command-r": "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>S<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Q?<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>A.<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>R?<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "harmony": "<|start|>system<|message|>S<|end|><|start|>user<|message|>Q?<|end|>"
    "<|start|>assistant<|channel|>final<|message|>A.<|end|><|start|>user<|message|>R?<|end|>"
    "<|start|>assistant<|channel|>final<|message|>",
    "gpt-oss": "<|start|>developer<|message|>S<|end|><|start|>user<|message|>Q?<|end|>"
    "<|start|>assistant<|channel|>final<|message|>A.<|end|><|start|>user<|message|>R?<|end|>"
    "<|start|>assistant",
    "kimi": "<|im_system|>system<|im_middle|>S<|im_end|><|im_user|>user<|im_middle|>Q?<|im_end|>"
    "<|im_assistant|>assistant<|im_middle|>A.<|im_end|><|im_user|>user<|im_middle|>R?<|im_end|>"
    "<|im_assistant|>assistant<|im_middle|>",
    "granite": "<|start_of_role|>system<|end_of_role|>S<|end_of_text|>\n"
    "<|start_of_role|>user<|end_of_role|>Q?<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>A.<|end_of_text|>\n"
    "<|start_of_role|>user<|end_of_role|>R?<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>",
    "exaone": "[|system|]S[|endofturn|]\n[|user|]Q?\n[|assistant|]A.[|endofturn|]\n"
    "[|user|]R?\n[|assistant|]",
    "gemma-4": "<bos><|turn>system\nS<turn|>\n<|turn>user\nQ?<turn|>\n<|turn>model\nA.<turn|>\n"
    "<|turn>user\nR?<turn|>\n<|turn>model\n",
    "hunyuan": "<｜hy_begin▁of▁sentence｜>S<｜hy_place▁holder▁no▁3｜><｜hy_User｜>Q?"
    "<｜hy_Assistant｜>A.<｜hy_place▁holder▁no▁2｜><｜hy_User｜>R?<｜hy_Assistant｜>",
    "minimax": "]~!b[]~b]system\nS[e~[\n]~b]user\nQ?[e~[\n]~b]ai\nA.[e~[\n]~b]user\nR?[e~[\n"
    "]~b]ai\n",
    "seed": "<seed:bos>system\nS<seed:eos><seed:bos>user\nQ?<seed:eos><seed:bos>assistant\nA."
    "<seed:eos><seed:bos>user\nR?<seed:eos><seed:bos>assistant\n",
    "ling": "<role>SYSTEM</role>S<|role_end|><role>HUMAN</role>Q?<|role_end|>"
    "<role>ASSISTANT</role>A.<|role_end|><role>HUMAN</role>R?<|role_end|><role>ASSISTANT</role>",
    "megrez": "<|role_start|>system<|role_end|>S<|turn_end|><|role_start|>user<|role_end|>Q?"
    "<|turn_end|><|role_start|>assistant<|role_end|>A.<|turn_end|>"
    "<|role_start|>user<|role_end|>R?<|turn_end|><|role_start|>assistant<|role_end|>",
    "apertus": "<s><|system_start|>S<|system_end|><|user_start|>Q?<|user_end|>"
    "<|assistant_start|>A.<|assistant_end|><|user_start|>R?<|user_end|><|assistant_start|>",
    "nemotron": "<extra_id_0>System\nS\n<extra_id_1>User\nQ?\n<extra_id_1>Assistant\nA.\n"
    "<extra_id_1>User\nR?\n<extra_id_1>Assistant\n",
}
#: By template: what the policy emits to end its turn, and what pads it.
LAST = {
    "chatml": "<|im_end|><|endoftext|><|endoftext|>",
    "phi-4": "<|im_end|>",
    "llama-2": "</s><unk><unk>",
    "mistral": "</s></s>",
    "llama-3": "<|eot_id|><|finetune_right_pad_id|>",
    "llama-4": "<|eot|><|end_of_text|>",
    "gemma": "<end_of_turn>\n<eos><pad><pad>",
    "deepseek": "<｜end▁of▁sentence｜><｜▁pad▁｜>",
    "phi-3": "<|end|><|endoftext|>",
    "zephyr": "</s></s>",
    "glm-4": "<|user|>",
    "command-r": "<|END_OF_TURN_TOKEN|><PAD>",
    "harmony": "<|return|>",
    "gpt-oss": "<|return|><|endoftext|>",
    "kimi": "<|im_end|>",
    "granite": "<|end_of_text|><|end_of_text|>",
    "exaone": "[|endofturn|][PAD]",
    "gemma-4": "<turn|><pad>",
    "hunyuan": "<｜hy_place▁holder▁no▁2｜>",
    "minimax": "[e~[",
    "seed": "<seed:eos>",
    "ling": "<|role_end|>",
    "megrez": "<|turn_end|>",
    "apertus": "<|assistant_end|>",
    "nemotron": "<extra_id_1>",
}


@pytest.mark.parametrize("name", PROMPTS)
def test_split_text_last_assistant_turn_is_the_completion(name: str) -> None:
    text = PROMPTS[name] + "B, indeed." + LAST[name]
    expected = Texts(turns("S", "Q?", "A.", "R?"), "B, indeed.")
    assert split_text(text, None) == expected
    assert split_text(text, TEMPLATES[name]) == expected


@pytest.mark.parametrize("name", PROMPTS)
def test_split_query_equals_pair_texts_of_its_parts(name: str) -> None:
    expected = Texts(turns("S", "Q?", "A.", "R?"), "B, indeed.")
    completion = "B, indeed." + LAST[name]
    assert pair_texts(PROMPTS[name], completion, None) == expected
    assert split_query(PROMPTS[name] + completion, PROMPTS[name], None) == expected


@pytest.mark.parametrize("name", PROMPTS)
def test_split_text_accepts_empty_and_truncated_completions(name: str) -> None:
    assert split_text(PROMPTS[name], None).completion == ""
    assert split_text(PROMPTS[name] + LAST[name], None).completion == ""
    assert split_text(PROMPTS[name] + "B, ind", None).completion == "B, ind"
    assert pair_texts(PROMPTS[name], "", None).completion == ""
    assert pair_texts(PROMPTS[name], LAST[name], None).completion == ""


def test_split_text_keeps_white_space_of_the_policy() -> None:
    assert split_text(CHATML + "\n  B \n<|im_end|>\n", None).completion == "\n  B \n"
    assert split_query("Q? B \n", "Q?", None).completion == " B \n"


def test_split_text_drops_leading_padding() -> None:
    padding = "<|endoftext|>" * 3
    expected = Texts(turns("Q?"), "B")
    assert split_text(padding + CHATML + "B<|im_end|>" + padding, None) == expected
    assert split_query(padding + CHATML + "B<|im_end|>" + padding, CHATML, None) == expected
    assert split_query("</s></s>Q? B</s></s>", "Q?", None) == Texts("Q?", " B")


def test_split_text_that_mentions_another_template_is_not_split_by_it() -> None:
    told = "What is <start_of_turn>user\n for?"
    text = f"<|im_start|>user\n{told}<|im_end|>\n<|im_start|>assistant\nGemma: <end_of_turn>"
    expected = Texts(turns(told), "Gemma: <end_of_turn>")
    assert split_text(text + "<|im_end|>", None) == expected


THINKING = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>"
ASKED = "<|start|>user<|message|>Q?<|end|><|start|>assistant"


def test_split_gpt_oss_thoughts_are_not_the_answer() -> None:
    expected = Texts(turns("Q?"), "B.")
    assert pair_texts(ASKED, f"{THINKING}B.<|return|>", None) == expected
    assert split_text(f"{ASKED}{THINKING}B.<|return|>", None) == expected
    begun = f"{ASKED}<|channel|>analysis<|message|>"
    rest = THINKING.removeprefix("<|channel|>analysis<|message|>")
    assert pair_texts(begun, f"{rest}B.<|return|>", None) == expected
    assert answer_of(f"{THINKING}B.<|return|>", None) == "B."  # of a prompt of messages


def test_split_gpt_oss_thoughts_without_answer_are_the_answer() -> None:
    cut = pair_texts(ASKED, "<|channel|>analysis<|message|>Hm, that is", None)
    assert cut == Texts(turns("Q?"), "Hm, that is")


#: Prompts in templates that are not known here, or that were cut.
UNKNOWN = {
    "<|foo_start|>user\nQ?<|foo_end|><|foo_start|>assistant\n": "<|foo_start|>",
    "<|startoftext|>Q?<|extra_0|>": "<|extra_0|>",
    "<|userprompt|>Q?<|endofuserprompt|><|response|>": "<|userprompt|>",
    "<|system|>S<|endofsystem|><|userprompt|>Q?<|endofuserprompt|><|response|>": "<|response|>",
    "<|begin_of_sentence|>User: Q?\nAssistant: ": "<|begin_of_sentence|>",
    "Human: Q?<|separator|>\n\nAssistant: ": "<|separator|>",
    "<beginning_of_sentence>user name=user\nQ?<end_of_sentence>\n": "<beginning_of_sentence>",
    "[|Human|]Q?\n[|AI|]": "[|Human|]",
    "tail of a question<｜next｜><｜Model｜>": "<｜Model｜>",
    "...n was it? [/INST]": "[/INST]",
    "was it?<turn|>\n<|turn>model\n<think>\n": "<|turn>",
}


@pytest.mark.parametrize("prompt", UNKNOWN)
def test_pair_texts_prompt_in_unknown_template_raises(prompt: str) -> None:
    with pytest.raises(SplitError, match="of no known chat template") as caught:
        pair_texts(prompt, "B.", None)
    assert UNKNOWN[prompt] in str(caught.value)
    assert pair_texts(prompt, "B.", TEMPLATES["plain"]) == Texts(prompt, "B.")


@pytest.mark.parametrize(
    "prompt",
    [
        "<s>old</s> and <b>new</b>",
        "<div><p>Q?</p></div>",
        "Is Map<String, List<T>> fine?",
        "cat <<EOF | grep '<|'",
        "parse <|> (many1 digit)",
        "xs |> List.map f <| ys",
        "What does `<|im_start|>user` mean?",
        "What does <|im_end|> mean",
        "When is it written: <|eot_id|>",
        "<|im_end|> is what?",
        "<user>Q?</user>",
        "<role>You are kind.</role>\nQ?",
        "<begin_of_document>Q?<end_of_document>",
        "Human: Q?\n\nAssistant:",
        "USER: Q? ASSISTANT:",
        "### Instruction:\nQ?\n\n### Response:\n",
        "<|fim_prefix|>def f():<|fim_suffix|>\n<|fim_middle|>",
        "[1, 2] [INST",
        "a[|x|] = 1",
        "Q?\n<think>\n",
    ],
)
def test_pair_texts_html_and_code_and_mentioned_tokens_are_plain(prompt: str) -> None:
    assert pair_texts(prompt, "B.", None) == Texts(prompt, "B.")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("B.<|eom_id|>", "B."),
        ("B.<|eot_id|><|finetune_right_pad_id|><|finetune_right_pad_id|>", "B."),
        ("B.<|user|>", "B."),
        ("B.<|return|>", "B."),
        ("B.</s></s></s>", "B."),
        ("B.</s><pad><pad>", "B."),
        ("Write <s>old</s><|im_end|>", "Write <s>old</s>"),
        ("Write <s>old</s></s>", "Write <s>old</s>"),
        ("Write <s>old</s>", "Write <s>old</s>"),
        ("Write <s>old</s> anew</s>", "Write <s>old</s> anew"),
        ("<s>B.</s>", "<s>B."),
    ],
)
def test_without_ends_keeps_html_unless_it_is_a_named_end(text: str, left: str) -> None:
    assert without_ends(text, ()) == left


def test_split_text_keeps_html_at_the_end_of_a_turn() -> None:
    assert split_text(CHATML + "<s>old</s><|im_end|>", None).completion == "<s>old</s>"


def test_pair_texts_plain_prompt_is_unchanged() -> None:
    prompt = "Human: Q?\n\nAssistant:"
    expected = Texts(prompt, " B.")
    assert split_query(f"{prompt} B.<|endoftext|>", prompt, None) == expected
    assert pair_texts(prompt, " B.</s>", None) == expected


@pytest.mark.parametrize(
    ("query", "prompt"),
    [
        ("<s> [INST] Q? [/INST] B.</s>", "<s>[INST] Q? [/INST]"),  # sentencepiece adds spaces
        ("<s>[INST] Q? [/INST]B.</s>", "[INST] Q? [/INST] "),  # a token that was not in the text
        ("<s><s>[INST] Q? [/INST] B.", "<s>[INST] Q? [/INST]"),
        ("[INST] Q ? [/INST] B.", "[INST] Q? [/INST]"),
    ],
)
def test_split_query_tolerates_changed_white_space(query: str, prompt: str) -> None:
    assert split_query(query, prompt, None) == Texts(turns("Q?"), "B.")


def test_split_query_assigns_white_space_after_prompt_once() -> None:
    prompt = "What 's it ?\n\n"
    assert split_query("What's it?\n\n  B.", prompt, None) == Texts(prompt, "  B.")


def test_split_query_recognizes_truncated_prompt_by_its_end() -> None:
    prompt = CHATML.replace("Q?", "Once upon a time there was a question?")
    query = prompt[20:] + "B.<|im_end|>"
    expected = Texts(turns("Once upon a time there was a question?"), "B.")
    assert split_query(query, prompt, None) == expected
    assert split_query("\ufffd" + query, prompt, None) == expected  # cut within a character


@pytest.mark.parametrize(
    ("query", "prompt"),
    [
        ("What is it? B.", "Who is it?"),
        ("assistant\nB.", CHATML),  # too little is left to be sure
        ("ab" * 30 + "B.", "ab" * 50),  # might be cut anywhere
        ("", "Q?"),
    ],
)
def test_split_query_without_its_prompt_raises(query: str, prompt: str) -> None:
    with pytest.raises(SplitError, match="starts neither with its prompt"):
        split_query(query, prompt, None)


def test_split_query_with_empty_prompt_uses_the_template() -> None:
    assert split_query(CHATML + "B.<|im_end|>", "", None) == Texts(turns("Q?"), "B.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Q? B.", "does not start with a known chat template"),
        ("Human: Q?\n\nAssistant: B.", "does not start with a known chat template"),
        ("", "does not start with a known chat template"),
        ("once <|im_start|>user\nQ?<|im_end|>", "does not start with a known chat template"),
        ("<|im_start|>user\nQ?<|im_end|>\n", "does not end with an assistant's turn"),
        ("<|im_start|>user\nQ? that was cut", "does not end with an assistant's turn"),
        (CHATML + "B.<|im_end|>\n<|im_start|>user\nAnd", "does not end with an assistant's turn"),
        ("<|im_start|>assistant\nB.<|im_end|>", "no turn before"),
    ],
)
def test_split_text_that_is_ambiguous_raises(text: str, message: str) -> None:
    with pytest.raises(SplitError, match=message):
        split_text(text, None)


@pytest.mark.parametrize("split", [split_text, lambda text, one: pair_texts(text, "B", one)])
def test_split_text_in_another_template_than_named_raises(split: Any) -> None:
    with pytest.raises(SplitError, match="does not start with a turn of the template 'gemma'"):
        split(CHATML, TEMPLATES["gemma"])


def test_split_text_plain_is_a_completion_without_prompt() -> None:
    assert split_text("B.</s>", TEMPLATES["plain"]) == Texts("", "B.")


def test_pair_texts_further_turns_are_messages() -> None:
    more = "B.<|im_end|>\n<|im_start|>tool\nT<|im_end|>\n<|im_start|>assistant\nC.<|im_end|>"
    completion = (Message("assistant", "B."), Message("tool", "T"), Message("assistant", "C."))
    assert pair_texts(CHATML, more, None) == Texts(turns("Q?"), completion)


@pytest.mark.parametrize(
    ("prompt", "call", "results"),
    [
        (
            "<s>[INST] Q?[/INST]",
            "[TOOL_CALLS] find</s>",
            "[TOOL_RESULTS] T[/TOOL_RESULTS][TOOL_RESULTS] U[/TOOL_RESULTS]",
        ),
        (
            "<｜User｜>Q?<｜Assistant｜>",
            "<｜tool▁call▁begin｜>find<｜tool▁call▁end｜><｜end▁of▁sentence｜>",
            "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>T<｜tool▁output▁end｜>\n"
            "<｜tool▁output▁begin｜>U<｜tool▁output▁end｜><｜tool▁outputs▁end｜>",
        ),
        (
            "<|turn>user\nQ?<turn|>\n<|turn>model\n",
            "<|tool_call>find<tool_call|>",
            "<|tool_response>T<tool_response|><|tool_response>U<tool_response|>",
        ),
    ],
)
def test_results_of_tools_within_the_assistants_turn_are_messages(
    prompt: str, call: str, results: str
) -> None:
    found = pair_texts(prompt, f"{call}{results}C.", None)
    assert found.prompt == turns("Q?")
    roles = [(one.role, one.content) for one in found.completion[1:]]  # type: ignore[union-attr]
    assert roles == [("tool", "T"), ("tool", "U"), ("assistant", "C.")]
    cut = pair_texts(prompt, f"{call}{results}", None).completion
    assert [(one.role, one.content) for one in cut[1:]] == [("tool", "T"), ("tool", "U")]  # type: ignore[union-attr]
    last = split_text(f"{prompt}{call}{results}C.", None)
    assert last.completion == "C."
    assert [one.role for one in last.prompt] == ["user", "assistant", "tool", "tool"]  # type: ignore[union-attr]


def test_tokens_of_mistrals_results_are_text_in_llama_2() -> None:
    asked = "What does [TOOL_RESULTS] mean?"
    found = pair_texts(f"<s>[INST] {asked} [/INST]", "[TOOL_RESULTS] begins results.", None)
    assert found.prompt == turns(asked)
    mistral = "[TOOL_CALLS] find</s>[TOOL_RESULTS]id1[TOOL_CONTENT]T[/TOOL_RESULTS]C.</s>"
    (_, tool, answer) = pair_texts("<s>[INST] Q?[/INST]", mistral, None).completion
    assert (tool, answer) == (Message("tool", "T"), Message("assistant", "C."))


def test_pair_texts_drops_special_tokens_inside_completion() -> None:
    assert split_text(CHATML + "B.<|im_end|> And more", None).completion == "B. And more"


def test_split_prompt_s_started_turn_starts_the_completion() -> None:
    begun = pair_texts(CHATML + "<think>\n", "Hm.\n</think>\nB.<|im_end|>", None)
    assert begun == Texts(turns("Q?"), "<think>\nHm.\n</think>\nB.")


def test_split_empty_thoughts_of_a_template_are_dropped() -> None:
    empty = "<think>\n\n</think>\n\n"
    assert pair_texts(CHATML + empty, "B.<|im_end|>", None) == Texts(turns("Q?"), "B.")
    assert split_text(CHATML + empty + "B.<|im_end|>", None) == Texts(turns("Q?"), "B.")


def test_split_text_by_custom_markers() -> None:
    text = "Be kind.\nHuman: Q?\nAssistant: B.\n"
    assert split_text(text, HUMAN) == Texts(turns("Be kind.", "Q?"), "B.")
    assert pair_texts(text[:-4], " B.</s>", HUMAN) == Texts(turns("Be kind.", "Q?"), "B.")


def test_split_text_ends_at_custom_end() -> None:
    ended = marked(user="<U>", assistant="<A>", system="<S>", ends=["<END>", ""])
    text = "<S>S<END><U>Q?<END><A>B.<END></s>"
    assert split_text(text, ended) == Texts(turns("S", "Q?"), "B.")


def test_split_text_with_repeated_plain_marker_raises() -> None:
    text = "Human: Q?\nAssistant: B.\nHuman: R?\nAssistant: C."
    with pytest.raises(SplitError, match="marker more than once"):
        split_text(text, HUMAN)
    prompt = text[: text.index(" B.")]
    pair = pair_texts(prompt, text[len(prompt) :], HUMAN)  # with the prompt it is known
    assert pair.prompt == turns("Q?")
    assert [message.content for message in pair.completion] == ["B.", "R?", "C."]


def test_without_ends_long_padding_takes_linear_time() -> None:
    padded = "</s>" * 200_000
    assert split_text(f"{CHATML}B.{padded}", None).completion == "B."
    assert split_text(f"{CHATML}{padded}B.", None).completion == f"{padded}B."
    with pytest.raises(SplitError):
        split_query("a" * 200_000, "a" * 300_000 + "b", None)
