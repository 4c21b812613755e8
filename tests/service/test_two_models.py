"""Two models over TCP: requests saturate a slow one while others use a fast one."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
import transformers as hf
from processes import recipe_of
from served import until
from tcp import over_tcp
from tiny import config, save, tokenizer

from alarm_models.recipe.loader import load_recipe
from alarm_models.reward_models.registry import Loader
from alarm_service.api.app import create_app
from alarm_service.engine.model_set import ServedModel
from alarm_service.settings import Settings

PATIENCE_S = 120


def checkpoint(folder: Path, num_layers: int) -> None:
    torch.manual_seed(0)
    made = config("llama", num_labels=1, num_hidden_layers=num_layers)
    save(
        hf.AutoModelForSequenceClassification.from_config(made),
        tokenizer(bos=True, eos=False),
        folder,
    )


class Counted:
    """A model whose forward passes are recorded, and wait for an event."""

    def __init__(self, model: object, name: str, passes: list[str], gate: threading.Event) -> None:
        self._model = model
        self._name = name
        self._passes = passes
        self._check = gate

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    def forward(self, batch: list[object]) -> object:
        assert self._check.wait(PATIENCE_S)
        self._passes.append(self._name)
        return self._model.forward(batch)  # type: ignore[attr-defined]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads of torch that outnumber the cores wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.usefixtures("one_thread")
async def test_fast_model_waits_for_two_batches_of_a_saturated_slow_one(
    tmp_path: Path,
) -> None:
    recipes = []
    for name, num_layers in {"slow": 12, "fast": 2}.items():
        folder = tmp_path / name
        checkpoint(folder, num_layers)
        file = tmp_path / f"{name}.toml"
        file.write_text(recipe_of(folder).replace("rm", name))
        recipes.append(load_recipe(str(file)))
    passes: list[str] = []
    gate = threading.Event()
    gate.set()

    def load(wanted: dict[str, ServedModel], device: torch.device) -> dict[str, object]:
        loader = Loader(device)
        return {
            key: Counted(loader.load(one.spec, one.fields), one.name, passes, gate)
            for key, one in wanted.items()
        }

    settings = Settings(device="cpu", max_batch_tokens=256)
    app = create_app(recipes, settings, load=load)  # type: ignore[arg-type]
    flood = [
        {"prompt": f"{index} The fox? " * 6, "completion": "The dog. " * 6} for index in range(300)
    ]
    single = {"model": "fast", "samples": [{"prompt": "The fox?", "completion": "The dog."}]}
    with over_tcp(app) as port:
        url = f"http://127.0.0.1:{port}"
        async with (
            httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as flooding,
            httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as asking,
        ):
            assert (await asking.post("/score", json=single)).status_code == 200
            gate.clear()
            engine = app.state.engine
            many = {"model": "slow", "samples": flood}
            flooded = [asyncio.create_task(flooding.post("/score", json=many)) for _ in range(2)]
            await until(lambda: engine.num_waiting > 500)
            gate.set()
            waits = []
            for _ in range(6):
                before = len(passes)
                answer = await asking.post("/score", json=single)
                assert answer.status_code == 200, answer.text
                between = passes[before:]
                waits.append(between.index("fast") if "fast" in between else len(between))
            is_flooded = engine.num_waiting > 0
            for one in flooded:
                one.cancel()
            await asyncio.gather(*flooded, return_exceptions=True)
    assert is_flooded, "the flood was over before the last answer: it has to be larger"
    # What runs as the sample comes, and one that is taken while it is tokenized.
    assert max(waits) <= 2
