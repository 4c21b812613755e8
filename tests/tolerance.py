"""The tolerances for computed floats in tests, and where they come from.

**float32, `computed` and `assert_computed`: 1e-5, absolute up to 1 and relative beyond.** The
rounding error of a sum depends on the order of its terms, which depends on the processor: AVX-512
adds 16 numbers in parallel, AVX2 8, the default kernels fewer. One rounding is at most u = 2**-24 =
6e-8 of the value. A dot product of n terms whose rounding errors are independent is off by about u
* sqrt(n) of the size of its terms: 2.3e-6 for the 1,536 terms of `mini`'s widest layer, the widest
that the tests run. Normalization in each layer keeps states of order 1, and errors of the layers
add as a random walk: sqrt(6) * 2.3e-6 = 5.7e-6 for its 6 layers. pytest's own default, 1e-6 of the
value, is less than what another order of the terms makes.

Both sides of these comparisons are computed on one processor, one of them by transformers alone.
Between processors, the states of the seven tiny architectures differed by 3.3e-6 (AVX2 and AVX-512)
and by 1.3e-5 (default kernels and either, because `exp` differs). No test with this tolerance
compares across processors.

**bfloat16, `in_bfloat16`: 0.1, absolute up to 1 and relative beyond.** One rounding is at most
2**-9 = 2e-3 of the value. Some twenty operations that round one after another in two layers add to
sqrt(20) * 2e-3 = 9e-3 of the largest term, and a head with random weights adds terms of up to ten
times the sum.

**Golden files, `as_golden`: 1e-4.** They were created by other versions of torch and transformers,
which fuse other operations, and are compared through rewards that multiply a score by up to five.

**Numbers printed in a document, `printed`: half of their last digit, plus 1e-5.**

**Numbers that a trainer passes on, `logged`: 1e-4.** They pass through its tensors, means over a
batch, and logs with four digits.

**Arithmetic by hand, `by_hand`: 1e-9 of the value.** Python floats, u = 1.1e-16, which do not
depend on a processor's vector width.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

__all__ = [
    "COMPUTED",
    "as_golden",
    "assert_computed",
    "by_hand",
    "computed",
    "in_bfloat16",
    "logged",
    "printed",
]

#: What floats that a model computed in float32 may differ by.
COMPUTED = 1e-5

_BFLOAT16 = 0.1
_GOLDEN = 1e-4
_LOGGED = 1e-4
_BY_HAND = 1e-9


def computed(expected: Any) -> Any:
    """Expect a value that a model computes in float32, in any batch and on any processor."""
    return pytest.approx(expected, rel=COMPUTED, abs=COMPUTED)


def in_bfloat16(expected: Any) -> Any:
    """Expect a value that a model of two layers computes in bfloat16."""
    return pytest.approx(expected, rel=_BFLOAT16, abs=_BFLOAT16)


def as_golden(expected: Any) -> Any:
    """Expect a value of a golden file, computed by other versions on another machine."""
    return pytest.approx(expected, rel=COMPUTED, abs=_GOLDEN)


def printed(expected: Any, digits: int = 3) -> Any:
    """Expect a value that a document prints with a number of decimal places."""
    return pytest.approx(expected, rel=COMPUTED, abs=0.5 * 10**-digits + COMPUTED)


def logged(expected: Any) -> Any:
    """Expect a value that a trainer computes from rewards and logs."""
    return pytest.approx(expected, rel=COMPUTED, abs=_LOGGED)


def by_hand(expected: Any) -> Any:
    """Expect a value computed by hand."""
    return pytest.approx(expected, rel=_BY_HAND, abs=_BY_HAND)


def assert_computed(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Fail unless two tensors computed in float32 agree."""
    torch.testing.assert_close(got, wanted, atol=COMPUTED, rtol=COMPUTED)
