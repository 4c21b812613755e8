"""Chat templates render as transformers renders them, and no operation of theirs is unbounded."""

import re
from pathlib import Path
from typing import Any

import pytest
import tiny
from transformers import PreTrainedTokenizerFast

from alarm_models.errors import CheckpointError, RecipeError, SampleError
from alarm_models.preprocessing import template_limits
from alarm_models.preprocessing.chat_templates import (
    FIXED_DATE,
    render_chat_template,
    require_jinja,
)

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Das Wetter <heute> für eine “Stadt” 🌦",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "enum": ["Zürich", "東京"]},
                    "days": {"type": ["integer", "null"], "default": 1},
                },
                "required": ["city"],
            },
        },
    }
]
CHATS: dict[str, list[dict[str, Any]]] = {
    "one turn": [
        {"role": "user", "content": "  Who wrote Emma?\n"},
        {"role": "assistant", "content": "Jane & <b>Austen</b>."},
    ],
    "system and turns": [
        {"role": "system", "content": "Be brief. Ünïcödé ​ 漢字 🙂\n\nAlways."},
        {"role": "user", "content": "2 % 3? {{ x }} {% if %}"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\n2"},
        {"role": "user", "content": "And 'now'?\t\"quoted\""},
        {"role": "assistant", "content": "<think>\nagain\n</think>\n\n3\n\n"},
    ],
    "tool call": [
        {"role": "user", "content": "Weather in Zürich?"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "I call it.",
            "tool_calls": [
                {
                    "id": "abc123def",
                    "type": "function",
                    "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2}},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "abc123def", "name": "weather", "content": "{'t': 21.5}"},
        {"role": "assistant", "content": "21.5 °C"},
    ],
}
#: In the styles of published templates.
TEMPLATES = sorted((Path(__file__).parents[1] / "chat_templates").glob("*.jinja"))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny.tokenizer(bos=True, eos=True)


@pytest.mark.parametrize("generates", [False, True], ids=["complete", "generation prompt"])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem)
def test_chat_template_renders_as_by_transformers(
    file: Path, chat: str, tools: Any, generates: bool, tokenizer: Any
) -> None:
    arguments = {"tools": tools, "add_generation_prompt": generates}
    template = file.read_text("utf-8")
    try:
        wanted = tokenizer.apply_chat_template(
            CHATS[chat], chat_template=template, tokenize=False, **arguments
        )
    except Exception as error:  # the template refuses these messages
        wanted = None
        said = str(error)
    if wanted is not None:
        assert render_chat_template(tokenizer, template, CHATS[chat], **arguments) == wanted
    else:
        with pytest.raises(SampleError, match=re.escape(said)):
            render_chat_template(tokenizer, template, CHATS[chat], **arguments)


def test_chat_template_gets_arguments_and_the_fixed_date(tokenizer: Any) -> None:
    template = "{{ mark }} {{ strftime_now('%Y-%m-%d') }} {{ range }}{{ bos_token }}"
    arguments = {"mark": "!", "range": "own"}
    got = render_chat_template(tokenizer, template, CHATS["one turn"], **arguments)
    assert got == f"! {FIXED_DATE:%Y-%m-%d} own{tokenizer.bos_token}"


@pytest.mark.parametrize("size", [10, 100_000])
def test_chat_template_with_long_messages_renders_as_by_transformers(
    size: int, tokenizer: Any
) -> None:
    chat = [{"role": "user", "content": "word\n" * size}, {"role": "assistant", "content": "é"}]
    template = (
        "{% for m in messages %}{{ '<' + m.role ~ m.content.strip() | replace('o', 'oo') + '>' }}"
        "{{ m.content.split('\\n') | length }}{{ m.content.split() | join(' ') }}{% endfor %}"
    )
    wanted = tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False)
    assert render_chat_template(tokenizer, template, chat) == wanted


def grown(step: str, start: str = "'a'") -> str:
    return (
        f"{{% set ns = namespace(x={start}, y=0) %}}{{% for i in range(99999) %}}"
        f"{{% set ns.x = {step} %}}{{% endfor %}}{{{{ ns.x }}}}"
    )


TEXT = "'a'.ljust(10**6)"
LARGE = [
    "{{ 'a' * 10**10 }}",
    "{{ 10**10 * 'a' }}",
    "{{ ['a'] * 10**9 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '%.999999999f' % 1.0 }}",
    "{{ '%(a(b))999999999d' % {'a(b)': 1} }}",
    "{{ '%(a)s%(a)s%(a)s' % {'a': " + TEXT + "} }}",
    "{{ '%s%s' | format(" + TEXT + ", " + TEXT + ") }}",
    "{{ '{:>9999999999}'.format(1) }}",
    "{{ '{0:{1}}'.format(1, 10**9) }}",
    "{{ '{x:>999999999}'.format_map({'x': 1}) }}",
    "{{ ('{:>999999999}' | safe).format(1) }}",
    "{{ 'a'.ljust(10**10) }}",
    "{{ 'a'['rjust'](10**10) }}",
    "{{ ('a' | attr('center'))(10**10) }}",
    "{% set f = 'a'.zfill %}{% for i in [1] %}{{ f(10**10) }}{% endfor %}",
    "{{ ('a' | safe).ljust(10**10) }}",
    "{{ '\t'.expandtabs(10**9) }}",
    "{{ " + TEXT + ".replace(' ', " + TEXT + ") }}",
    "{{ " + TEXT + " | replace(' ', " + TEXT + ") }}",
    "{{ " + TEXT + ".join(range(9)|map('string')) }}",
    "{{ range(9) | join(" + TEXT + ") }}",
    "{{ range(9) | map('center', 10**6) | join }}",
    "{{ {'a': " + TEXT + ", 'b': " + TEXT + "}.values() | join }}",
    "{{ 'x' | center(10**10) }}",
    "{% filter center(10**10) %}x{% endfilter %}",
    "{{ 'x\ny' | indent(10**9) }}",
    "{{ 'x\ny' | indent(10**9, true) }}",
    "{{ [1] | tojson(indent=10**9) }}",
    "{{ [1] | batch(10**9, 'x') | list }}",
    "{{ [1] | slice(10**9) | list }}",
    "{{ 'a b' | wordwrap(1, wrapstring=" + TEXT + ") }}",
    "{{ " + TEXT + " | list }}",
    "{{ " + TEXT + " | map('upper') | list }}",
    "{{ " + TEXT + ".split(' ') }}",
    "{{ ('a\n' * 400000).splitlines() }}",
    "{{ cycler(*" + TEXT + ") }}",
    "{{ " + TEXT + " ~ " + TEXT + " }}",
    "{{ " + TEXT + " + " + TEXT + " }}",
    "{% set x = " + TEXT + " %}{% set y = [x, x] %}{{ y }}",
    "{% set x = " + TEXT + " %}{{ x }}{{ x }}",
    "{% set x = " + TEXT + " %}{% set y %}{{ x }}{{ x }}{% endset %}",
    "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}{{ m(" + TEXT + ") }}",
]  # fmt: skip
GROWN = [
    grown("ns.x ~ ns.x"),
    grown("ns.x + ns.x"),
    grown("[ns.x, ns.x]"),
    grown("(ns.x, ns.x)"),
    grown("{'a': ns.x, 'b': ns.x}"),
    grown("dict(a=ns.x, b=ns.x)"),
    grown("dict.fromkeys([1, 2], ns.x)"),
    grown("[ns.x] * 2"),
    grown("ns.x + ns.x", "[1]"),
    grown("[1] | batch(3, ns.x) | list"),
    grown("{'a': ns.x.values(), 'b': ns.x.values()}", "{'a': 1}"),
]  # fmt: skip


@pytest.mark.parametrize("template", GROWN)
def test_value_of_chat_template_that_doubles_fails_its_sample(
    template: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_limits, "_MIN_CHARS", 10_000)
    with pytest.raises(SampleError, match=r"operation would make more than \d+ characters"):
        render_chat_template(tokenizer, template, CHATS["one turn"])


@pytest.mark.parametrize("template", LARGE)
def test_operation_of_chat_template_with_large_result_fails_its_sample(
    template: str, tokenizer: Any
) -> None:
    with pytest.raises(SampleError, match=r"operation would make more than|gets more than") as e:
        render_chat_template(tokenizer, template, CHATS["one turn"])
    assert e.value.code == "invalid_sample"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 10 ** (10 ** 10) }}", "bits"),
        ("{% set x = 2 ** 60000 %}{{ x * x }}", "bits"),
        ("{{ ('f' * 100000) | int(0, 16) }}", "bits"),
        ("{{ 1.5 | round(10**9, 'ceil') }}", "places"),
        ("{{ range(10**9) | list }}", "Range too big"),
        ("{{ ('a' * 10**6).rfind('b' ~ 'a' * 400000) }}", "searches"),
        ("{{ ('a' * 10**6) | trim('b' * 400000 ~ 'a') }}", "searches"),
        ("{{ ('a@a.' * 100000) | urlize }}", "layout"),
        ("{{ (1).to_bytes(10**9, 'big') }}", "cannot call to_bytes"),
        ("{{ 'a'.translate({97: 'b' * 10**6}) }}", "cannot call translate"),
        ("{{ ''.maketrans({}) }}", "cannot call maketrans"),
        ("{{ {}.fromkeys([1]) }}", "cannot call fromkeys"),
        ("{{ ('x' | safe).unescape() }}", "cannot call unescape"),
        ("{{ strftime_now('%Y' * 1000) }}", "date format"),
        ("{{ [[1, 2]] | map('random') | list }}", "random"),
        ("{{ [1, 2] |           random }}", "random"),
        ("{{ raise_exception('x' * 10000) }}", r"x{200}\.\.\.$"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}", "nested too deeply"),
        ("{% include 'x' %}", "no loader"),
    ],
)
def test_operation_that_chat_templates_may_not_use_fails_its_sample(
    template: str, said: str, tokenizer: Any
) -> None:
    with pytest.raises(SampleError, match=said):
        render_chat_template(tokenizer, template, CHATS["one turn"])


@pytest.mark.parametrize(
    "body",
    [
        "{% set ns.l = [x[i:]] + [ns.l] %}",
        "{% set ns.l = namespace(a=ns.l, b=x[i:]) %}",
        "{% set ns.l = namespace(a=ns.l) %}",
        "{% set ns.l = [ns.l] %}",
        "{% set y = x ~ i %}",
        "a",
    ],
)
def test_chat_template_that_makes_much_in_small_pieces_fails_its_sample(
    body: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_limits, "_MIN_CHARS", 10_000)
    template = (
        "{% set ns = namespace(l=[]) %}{% set x = 'a' * 100 %}{% for i in range(99999) %}"
        f"{{% for j in range(99999) %}}{body}{{% endfor %}}{{% endfor %}}"
    )
    with pytest.raises(SampleError, match=r"makes or repeats too much|would make more"):
        render_chat_template(tokenizer, template, CHATS["one turn"])


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("x" * 200_000, "200000 characters; the limit is"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "nested too deeply"),
        ("{% for a in b %}" * 30 + "{% endfor %}" * 30, "nested"),
        ("{% break %}", "outside loop"),
        ("{{ " + "9" * 5000 + " }}", "limit"),
        ("\n{% if %}", "line 2"),
        ("{{ a | nothing }}", "No filter"),
    ],
)
def test_chat_template_that_cannot_be_compiled_is_refused(template: str, said: str) -> None:
    with pytest.raises(RecipeError, match=f"^chat_template is not valid Jinja.*{said}"):
        require_jinja(template)
    with pytest.raises(CheckpointError, match=f"a/model: its chat template.*{said}"):
        require_jinja(template, "a/model")
