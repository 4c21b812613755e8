"""The recipe `mini` with a real server, the real client and real questions."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Process, alarm_serve
from tolerance import computed

from alarm_client.client import AlarmClient, AsyncAlarmClient
from alarm_client.types import Sample

pytestmark = pytest.mark.numeric

PROMPT = (
    "question: Who wrote Emma? context: wikipage: Emma (novel) text: Emma is a novel written by "
    "English author Jane Austen. It is set in the fictional country village of Highbury. It was "
    "first published in December 1815, although the title page is dated 1816."
)
GROUNDED = "Emma is a novel written by English author Jane Austen."
MADE_UP = "Charles Dickens composed it for the Paris opera during his third voyage."


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with alarm_serve("mini") as process:
        with AlarmClient(process.url) as client:
            client.wait_ready(timeout=120)
        yield process


def test_mini_weights_are_small() -> None:
    import alarm_models

    folder = Path(alarm_models.__file__).parent / "recipes" / "mini"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 60e6


def test_mini_grounded_answer_has_higher_factuality_than_invented_one(server: Process) -> None:
    with AlarmClient(server.url) as client:
        samples = [Sample(prompt=PROMPT, completion=one) for one in (GROUNDED, MADE_UP)]
        result = client.score(samples, model="factuality_rm")
    grounded, made_up = (score.segments[0].score for score in result.scores if score.segments)
    assert grounded is not None
    assert made_up is not None
    assert grounded > made_up


def test_mini_token_rewards_sum_to_the_reward(server: Process) -> None:
    offsets = [(0, 4), (5, 7), (8, 9), (10, 15), (16, 54), (54, 54)]
    sample = Sample(prompt=PROMPT, completion=GROUNDED, token_offsets=offsets)
    with AlarmClient(server.url) as client:
        (reward,) = client.hierarchical_reward([sample], aspects="all").rewards
    assert reward.token_rewards is not None
    assert len(reward.token_rewards) == 6
    assert reward.reward == computed(sum(reward.token_rewards))
    assert set(reward.aspects) == {"factuality", "relevance"}


def test_mini_prompt_of_any_form_and_length_gets_a_reward(server: Process) -> None:
    sample = Sample(prompt="Tell me of Emma. " * 400, completion=GROUNDED)
    with AlarmClient(server.url) as client:
        (reward,) = client.hierarchical_reward([sample]).rewards
    assert reward.error is None
    assert reward.truncated


async def test_mini_200_concurrent_callers_get_the_scores_of_single_calls(server: Process) -> None:
    samples = [
        Sample(prompt=PROMPT, completion=f"{(GROUNDED, MADE_UP)[index % 2]} {index}")
        for index in range(200)
    ]
    async with AsyncAlarmClient(server.url) as client:
        together = await asyncio.gather(*(client.score([sample]) for sample in samples))
        for index in range(0, 200, 20):
            alone = await client.score([samples[index]])
            score = together[index].scores[0].score
            assert score == computed(alone.scores[0].score)
