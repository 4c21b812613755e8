"""The warm-up sample that each model scores before it is served."""

from pathlib import Path
from typing import Any

import pytest
from comparing_judge import prefers
from scripted_judge import judge_server, served
from tiny import Checkpoint
from tolerance import computed

from alarm_models.recipe.schema import Recipe
from alarm_models.types import Sample, Span, require_spans_within
from alarm_service.api.app import create_engine
from alarm_service.engine.devices import warm_up_sample
from alarm_service.engine.model_set import Catalog
from alarm_service.errors import ServiceError
from alarm_service.settings import Settings

#: Each reads something of a sample that the wire allows to be absent.
FUNCTIONS = """
def by_field(sample):
    return float(sample.fields["grade"])

def by_offsets(sample):
    return sample.token_offsets[-1].start

def by_group(sample):
    return len(sample.group) + len(sample.id)

def killed(sample):
    import os
    os._exit(1) if sample.id == "warm-up" else None
    return 1

def misspelled(sample):
    return sample.competion
"""


def recipe(**model: object) -> Recipe:
    return Recipe.model_validate(
        {"name": "mine", "models": {"one": model}, "holistic": {"model": "one"}}
    )


async def scored(made: Recipe, sample: Sample) -> float | str | None:
    """Load a recipe as a server does, and score one sample with it."""
    engine = create_engine([made], Settings(device="cpu"))
    await engine.start()
    try:
        await engine.life.until_ready()
        (outcome,) = (await engine.score(None, [sample])).outcomes
        return str(outcome) if isinstance(outcome, Exception) else outcome.value
    finally:
        await engine.close()


@pytest.mark.parametrize(
    ("function", "value"),
    [
        ("by_field", 4),
        ("by_offsets", 2),
        ("by_group", 3),
        ("killed", 1),
        ("misspelled", "'Sample' object has no attribute 'competion'"),
    ],
)
async def test_warm_up_function_without_score_is_served(
    function: str, value: int | str, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    made = recipe(kind="python", function=f"mine:{function}", path=str(tmp_path))
    sample = Sample("?", "ab", {"grade": "4"}, (Span(0, 2), Span(2, 2)), id="1", group="g1")
    found = await scored(made, sample)
    assert found == value if isinstance(value, int) else value in str(found)


async def test_warm_up_model_with_small_limit_is_served(llama: Checkpoint) -> None:
    spec = {"kind": "sequence", "checkpoint": str(llama.folder), "template": "{completion}"}
    made = recipe(**spec, truncation="error", max_tokens=8)
    plain = llama.plain_logits("dog").item()
    assert await scored(made, Sample("?", "dog")) == computed(plain)


async def test_warm_up_model_that_no_sample_fits_is_refused(llama: Checkpoint) -> None:
    spec = {"kind": "sequence", "checkpoint": str(llama.folder)}
    template = "dog " * 9 + "{completion}"
    made = recipe(**spec, template=template, truncation="error", max_tokens=8)
    with pytest.raises(ServiceError, match="cannot score"):
        await scored(made, Sample("?", "dog"))


def test_warm_up_sample_has_all_optional_parts() -> None:
    made = recipe(kind="exact-match", reference="{reference} {unit}")
    (served,) = Catalog([made]).models.values()
    sample = warm_up_sample(served)
    assert sample.fields.keys() == {"reference", "unit"}
    assert sample.group
    assert sample.id
    require_spans_within(sample.token_offsets or (), sample.completion_text, "token_offsets")
    assert sample.token_offsets is not None
    assert sample.token_offsets[-1].start == len(sample.completion_text)


ENDPOINT_MODELS: dict[str, dict[str, Any]] = {
    "rubric": {"kind": "rubric", "criteria": {"short": {"text": "It is short."}}},
    "reference": {"kind": "compare", "method": "reference"},
    "group": {"kind": "compare"},
    "chat": {"kind": "remote", "api": "chat", "rubric": "Rate {completion}."},
}


@pytest.mark.parametrize(
    ("name", "num_asked"), [("rubric", 1), ("reference", 2), ("group", 2), ("chat", 1)]
)
async def test_warm_up_asks_a_judge_nothing_unless_it_is_told_to(name: str, num_asked: int) -> None:
    table = ENDPOINT_MODELS[name]
    with judge_server(), served(prefers(len)) as (judge, keys):
        for warm_up in (False, True):
            own = keys | {"warm_up": warm_up}
            is_remote = table["kind"] == "remote"
            engine = create_engine(
                [recipe(**table, **(own if is_remote else {"endpoint": own}))],
                Settings(device="cpu"),
            )
            await engine.start()
            try:
                await engine.life.until_ready()
            finally:
                await engine.close()
            assert len(judge.bodies) == warm_up * num_asked


async def test_warm_up_left_out_still_refuses_an_output_that_a_judge_does_not_have() -> None:
    with judge_server(), served(prefers(len)) as (judge, keys):
        table = ENDPOINT_MODELS["rubric"] | {"endpoint": keys}
        made = Recipe.model_validate(
            {
                "name": "mine",
                "models": {"one": table},
                "holistic": {"model": "one", "output": "long"},
            }
        )
        with pytest.raises(ServiceError, match="the model's outputs are: short"):
            await scored(made, Sample("?", "dog"))
        assert not judge.bodies
