"""A chat model as a judge, against a small server that answers what it is told to."""

from remote_servers import completions, judge, opened, values

from alarm_models.errors import SampleError

JUDGE = {"model": "judge", "rubric": "Judge {completion} from 1 to 10. say:{completion}"}


#: What a judge says -> what is made of it.
ANSWERS: dict[str, float | str] = {
    "7": 7,
    "It has 3 flaws. Score: 8.5": 8.5,
    "I give it 8/10": 8,
    "I give it 8 / 10.": 8,
    "none": "model_failed",
    "11": "model_failed",
    "Let me think about 7...": "model_failed",
    "": "model_failed",
}


async def test_a_judge_gives_the_last_number_of_its_answer_or_none() -> None:
    async with opened(judge, api="chat", lowest=1, highest=10, **JUDGE) as (model, _):
        assert values(await model.score(completions(*ANSWERS))) == list(ANSWERS.values())


async def test_a_judge_is_asked_the_rubric_as_one_users_message() -> None:
    more = {"parameters": {"temperature": 0.5, "seed": 1}}
    async with opened(judge, api="chat", **JUDGE, **more) as (model, calls):
        await model.score(completions("7"))
        content = "Judge 7 from 1 to 10. say:7"
        assert calls.bodies == [
            {
                "model": "judge",
                "messages": [{"role": "user", "content": content}],
                "temperature": 0.5,
                "seed": 1,
            }
        ]


async def test_a_judge_that_takes_too_long_fails_its_sample_alone() -> None:
    async with opened(judge, api="chat", timeout_s=0.3, max_retries=0, **JUDGE) as (model, _):
        slow, fast = await model.score(completions("sleep", "6"))
        assert values([fast]) == [6]
        assert isinstance(slow, SampleError)
        assert slow.message == "chat at 127.0.0.1 took longer than 0.3 s"


async def test_the_recipes_pattern_finds_the_number() -> None:
    more = {"pattern": r"<score>(-?\d+)</score>"}
    async with opened(judge, api="chat", **JUDGE, **more) as (model, _):
        outcomes = await model.score(completions("<score>4</score> of 10", "4 of 10"))
        assert values(outcomes) == [4, "model_failed"]
