"""Wrong and hostile values in recipes are refused with a short sentence that names the key."""

from pathlib import Path
from typing import Any

import pytest
import tiny
from scoring import load

from alarm_models.errors import CheckpointError, RecipeError
from alarm_models.recipe.loader import load_recipe
from alarm_models.recipe.specs import SequenceSpec

END = '\n[holistic]\nmodel = "rm"\n[hierarchy]\nrule = "holistic_only"\n'
NEURAL = '[models.rm]\nkind = "sequence"\ncheckpoint = "some/model"\n'
JUDGE = (
    '[models.rm]\nkind = "remote"\napi = "chat"\nurl = "http://127.0.0.1:9"\nmodel = "m"\n'
    "parameters = { temperature = 1 }\n"
)
TEXT = '{ role = "user", content = "{completion}" }'
#: Longer than an error may be, with room for a path.
MAX_ERROR = 2500


def refusal(text: str, folder: Path) -> str:
    file = folder / "recipe.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(RecipeError) as refused:
        load_recipe(str(file))
    said = str(refused.value)
    assert len(said) < MAX_ERROR
    return said


@pytest.mark.parametrize("value", ["5", "1.5", "nan", "true", "[]", "{ a = 1 }", "2024-01-01"])
@pytest.mark.parametrize(
    "key", ["chat_template", "turns", "suffix", "prefix", "tokenizer", "revision", "adapter"]
)
def test_recipe_key_of_wrong_type_is_refused(key: str, value: str, tmp_path: Path) -> None:
    assert f"models.rm.{key}" in refusal(f"{NEURAL}{key} = {value}{END}", tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('prefix = ""', "prefix: String should have at least 1 character"),
        ('revision = ""', "revision: String should have at least 1 character"),
        (f'adapter = "{"a" * 2000}"', "adapter: String should have at most 1000 characters"),
        (f'tokenizer = "{"a" * 2000}"', "tokenizer: String should have at most 1000 characters"),
        (f'suffix = "{"x" * 200_000}"', "models.rm.suffix has 200000 characters"),
        (f'strip = "{"x" * 200_000}"', "models.rm.strip has 200000 characters"),
        (f'turns = {{ user = "{"x" * 100_000}", assistant = "{{}}" }}', "turns.user is 'xxx"),
        (f'turns = {{ separator = "{"x" * 200_000}" }}', "turns.separator has 200000 characters"),
        ('turns = { user = "{}", assistant = "{}", narrator = "{}" }', "turns.narrator"),
        ("template_arguments = { a = inf }", "template_arguments.a"),
        ("template_arguments = { messages = [] }", "sets ['messages']"),
        ("template_arguments = { self = 1 }", "sets ['self']"),
        (f"{'k' * 100_000} = 1", "kkk"),
        ("\n".join(f"k{at} = 1" for at in range(1000)), "and 995 more"),
        ("a = " + "[" * 5000, "is not valid TOML: it is nested too deeply"),
        ("a = " + "9" * 5000, "is not valid TOML"),
        ("# " + "x" * (1 << 20), "is not valid TOML: it has more than 1048576 bytes"),
    ],
    ids=range(17),
)
def test_recipe_value_that_cannot_be_used_is_refused(line: str, said: str, tmp_path: Path) -> None:
    assert said in refusal(NEURAL + line + END, tmp_path)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("messages = []", "messages: does not contain the completion"),
        ('messages = ["{prompt}"]', "messages: does not contain the completion"),
        ('messages = ["hello"]', "messages.0"),
        ('messages = [{ role = "", content = "{completion}" }]', "messages.0.JudgeMessage.role"),
        ("messages = [" + "1, " * 5000 + "]", "more"),
        (f"messages = [{TEXT}]\nn = 0", "n: Input should be greater than or equal to 1"),
        (f"messages = [{TEXT}]\nn = 99999999999999999999", "n: Input should be less than or equal"),
        (f"messages = [{TEXT}]\nn = true", "n: Input should be a valid integer"),
        (f"messages = [{TEXT}]\nvalues = {{ A = nan }}", "values.A: Input should be a finite"),
        (f'messages = [{TEXT}]\nvalues = {{ " " = 1 }}', "values: has a verdict"),
        (f'messages = [{TEXT}]\npattern = "{"(" * 5000 + ")" * 5000}"', "pattern: is"),
    ],
    ids=range(11),
)
def test_judge_with_values_that_cannot_be_used_is_refused(
    lines: str, said: str, tmp_path: Path
) -> None:
    assert said in refusal(JUDGE + lines + END, tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe{{ messages }}", "cannot be read"),
        (b"x" * 600_000, "it has more than 524288 bytes"),
        (b"x" * 200_000, "models.rm.chat_template has 200000 characters"),
        (b"", "chat_template: String should have at least 1 character"),
    ],
    ids=["binary", "large", "long", "empty"],
)
def test_chat_template_file_that_cannot_be_used_is_refused(
    content: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / "form.jinja").write_bytes(content)
    assert said in refusal(f'{NEURAL}chat_template = "form.jinja"{END}', tmp_path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("hostile")
    tiny.sequence_classifier("llama", folder)
    tiny.tokenizer(bos=True, eos=False).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("always the same", "does not write the content of the assistant's message"),
        ("{{ messages[0].content }}", "does not write the content of the assistant's message"),
        ("{{ 'a' * 10**10 }}", "cannot be used: .* would make more than"),
        ("{{ raise_exception('only tools') }}", "cannot be used: .* only tools"),
        ("{{ nothing.at.all }}", "cannot be used: .* undefined"),
        ("{% import 'os' as os %}", "cannot be used: .* no loader"),
        ("{{ ''.__class__.__mro__ }}", "cannot be used: .* unsafe"),
        ("{{ [1, 2] | random }}", "renders random text"),
        ("{{ messages", "is not valid Jinja, line 1"),
    ],
)
def test_chat_template_that_cannot_be_used_is_refused_at_load(
    template: str, said: str, checkpoint: str
) -> None:
    with pytest.raises(RecipeError, match=f"^chat_template {said}"):
        load(SequenceSpec(checkpoint=checkpoint, chat_template=template))


@pytest.mark.parametrize(
    "arguments", [{"template": "!", "tokenizer": 1, "messages_": 2, "a b": [1]}]
)
def test_template_arguments_with_names_of_our_functions_are_variables(
    arguments: dict[str, Any], checkpoint: str
) -> None:
    written = "{% for m in messages %}{{ template }}{{ m.content }}{% endfor %}"
    load(SequenceSpec(checkpoint=checkpoint, chat_template=written, template_arguments=arguments))


@pytest.mark.parametrize("key", ["checkpoint", "tokenizer", "adapter"])
@pytest.mark.parametrize("name", ["\0", "~nobody/x", "a/b/c", "b" * 900, "-rf", "\n"], ids=repr)
def test_folder_that_does_not_exist_is_refused_by_its_key(
    key: str, name: str, checkpoint: str
) -> None:
    keys = {"checkpoint": checkpoint, "template": "{completion}", key: name}
    with pytest.raises(CheckpointError, match=rf"(?s)^{key} .*a folder") as refused:
        load(SequenceSpec.model_validate(keys))
    assert len(str(refused.value)) < MAX_ERROR
