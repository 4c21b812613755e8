"""Imports are frozen, so that the garbage collector skips them."""

import gc
import weakref

import pytest

from alarm_models.process_tuning import gc_frozen_imports


class Knot:
    """Refers to itself: only the garbage collector frees it."""

    def __init__(self) -> None:
        self.own = self


def test_gc_frozen_imports_disables_and_freezes() -> None:
    try:
        with gc_frozen_imports():
            assert not gc.isenabled()
            stays = weakref.ref(Knot())
        assert gc.isenabled()
        gc.collect()
        assert stays() is not None
        goes = weakref.ref(Knot())
        gc.collect()
        assert goes() is None
    finally:
        gc.unfreeze()
    gc.collect()
    assert stays() is None


def test_gc_frozen_imports_enables_gc_after_an_error() -> None:
    try:
        with pytest.raises(ImportError), gc_frozen_imports():
            raise ImportError
        assert gc.isenabled()
    finally:
        gc.unfreeze()
