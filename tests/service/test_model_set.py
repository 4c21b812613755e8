"""Models by name: bare, or with their recipe's."""

import pytest
from served import serving
from standin import recipe

from alarm_service.errors import NotFound


async def test_model_set_finds_models_by_bare_and_full_name() -> None:
    async with serving(recipe("first"), recipe("second")) as server:
        await server.engine.life.until_ready()
        model_set = server.engine.model_set
        for one in model_set.catalog.recipes.values():
            loaded = model_set.model_of(one, "words")
            assert loaded is model_set.model("words") is model_set.model(f"{one.name}/words")
        with pytest.raises(NotFound, match="there are words"):
            model_set.model("third/words")
