"""How near computed floats have to be: every tolerance of the tests, with where it comes from.

**float32, `computed` and `assert_computed`: 1e-5, absolute up to 1 and relative beyond.** A sum's
rounding error depends on the order of its terms, and that on the processor: AVX-512 adds 16 numbers
side by side, AVX2 8, the plain kernels fewer. One rounding is at most u = 2**-24 = 6e-8 of the
value. A dot product of n terms whose rounding errors are independent is off by about u * sqrt(n) of
the size of its terms: 2.3e-6 for the 1,536 terms of `mini`'s widest layer, the widest that the
tests run. Normalisation in each layer keeps states of order 1, and errors of the layers add as a
random walk: sqrt(6) * 2.3e-6 = 5.7e-6 for its 6 layers. pytest's own default, 1e-6 of the value, is
less than what another order of the terms makes.

Both sides of these comparisons are computed on one processor, one of them by transformers alone.
Between processors the states of the seven tiny architectures were seen to differ by 3.3e-6 (AVX2
and AVX-512) and by 1.3e-5 (the plain kernels and both, which have another `exp`): no test of this
tolerance compares across processors.

**Golden files, `as_golden`: 1e-4.** Other versions of torch and transformers made them, which fuse
other operations, and they are read through a reward that weighs a score up to five times.

**Numbers that a document prints, `printed`: half of their last digit, and 1e-5.**

**Numbers that a trainer passes on, `logged`: 1e-4.** They go through its own tensors, means over a
batch and logs of four digits.

**Arithmetic by hand, `by_hand`: 1e-9 of the value.** Python's floats, u = 1.1e-16, and nothing that
a processor's vector width decides.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

__all__ = ["COMPUTED", "as_golden", "assert_computed", "by_hand", "computed", "logged", "printed"]

#: What floats that a model computed in float32 may differ by.
COMPUTED = 1e-5

_GOLDEN = 1e-4
_LOGGED = 1e-4
_BY_HAND = 1e-9


def computed(expected: Any) -> Any:
    """Stand for what a model computes in float32, in any batch and on any processor."""
    return pytest.approx(expected, rel=COMPUTED, abs=COMPUTED)


def as_golden(expected: Any) -> Any:
    """Stand for what a golden file has, computed by other versions on another machine."""
    return pytest.approx(expected, rel=COMPUTED, abs=_GOLDEN)


def printed(expected: Any, digits: int = 3) -> Any:
    """Stand for what a document prints with so many digits after the point."""
    return pytest.approx(expected, rel=COMPUTED, abs=0.5 * 10**-digits + COMPUTED)


def logged(expected: Any) -> Any:
    """Stand for what a trainer makes of computed numbers, and logs."""
    return pytest.approx(expected, rel=COMPUTED, abs=_LOGGED)


def by_hand(expected: Any) -> Any:
    """Stand for what a reader computes by hand."""
    return pytest.approx(expected, rel=_BY_HAND, abs=_BY_HAND)


def assert_computed(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Fail unless tensors that a model computed in float32 are alike."""
    torch.testing.assert_close(got, wanted, atol=COMPUTED, rtol=COMPUTED)
