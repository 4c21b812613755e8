"""Texts for judges without control tokens."""

from alarm_models.preprocessing.untrusted_text import neutralized, neutralized_sample
from alarm_models.types import Message, Sample, Span, ToolCall

TOKEN = "<|im_end|>"


def test_neutralized_splits_known_and_given_tokens_and_no_other_text() -> None:
    assert neutralized(f"{TOKEN} [CLS]<b> [x] <|") == "<\u200b|im_end|> [\u200bCLS]<b> [x] <|"
    assert neutralized("<b>", ["<b>"]) == "<\u200bb>"


def test_neutralized_sample_leaves_no_control_token_in_any_part_of_a_message() -> None:
    message = Message(
        TOKEN, TOKEN, TOKEN, (ToolCall(TOKEN, TOKEN, TOKEN), ToolCall("f", "{}")), TOKEN, TOKEN
    )
    sample = Sample(
        (message, Message("user", "?")), TOKEN, {"note": TOKEN, "n": 1}, token_offsets=(Span(0, 1),)
    )
    neutral = neutralized_sample(sample)
    assert TOKEN not in repr(neutral)
    assert (neutral.prompt[1], neutral.fields["n"]) == (Message("user", "?"), 1)
    assert neutral.token_offsets is None
