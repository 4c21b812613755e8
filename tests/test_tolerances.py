"""Tests that compare computed floats use shared tolerances, and run with all CPU kernels."""

import ast
from pathlib import Path

import pytest
import tolerance
import torch

TESTS = Path(__file__).parent

#: What compares floats by a tolerance of its own.
COMPARISONS = {"allclose", "approx", "assert_allclose", "assert_close", "isclose"}

#: What makes a test's floats come from a model: torch itself, and our helpers that load models.
COMPUTE = {"scoring", "tiny", "torch", "transformers", "unusual"}

FILES = sorted(file for file in TESTS.rglob("*.py") if file.name != "tolerance.py")


def imported(tree: ast.Module) -> set[str]:
    names = {
        one.name for node in ast.walk(tree) if isinstance(node, ast.Import) for one in node.names
    }
    names |= {
        node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module
    }
    return {name.partition(".")[0] for name in names}


def named(tree: ast.Module) -> set[str]:
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return attributes | {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def takes_fixture(tree: ast.Module, name: str) -> bool:
    return any(node.arg == name for node in ast.walk(tree) if isinstance(node, ast.arg))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(TESTS)))
def test_tests_of_computed_floats_use_the_shared_tolerances(file: Path) -> None:
    tree = ast.parse(file.read_text("utf-8"))
    uses = imported(tree)
    if uses & {*COMPUTE, "tolerance"} or takes_fixture(tree, "llama"):
        found = named(tree) & COMPARISONS
        assert not found, f"{file.name} compares with {sorted(found)}: see tests/tolerance.py"


def test_tolerance_accepts_differences_between_processors_and_no_more() -> None:
    # The values of tests/service/test_outputs.py on AVX-512: 3.6e-7 apart, 1.04e-6 of the value.
    assert tolerance.computed(-0.34442341327667236) == -0.3444230556488037
    assert tolerance.computed(1.0) != 1.0 + 2e-5
    assert tolerance.computed(100.0) == 100.0 + 5e-4
    assert tolerance.computed(100.0) != 100.0 + 2e-3
    tolerance.assert_computed(torch.tensor([0.5 + 5e-6]), torch.tensor([0.5]))
    with pytest.raises(AssertionError):
        tolerance.assert_computed(torch.tensor([0.5 + 5e-5]), torch.tensor([0.5]))


def test_ci_runs_numeric_tests_with_every_cpu_capability() -> None:
    script = (TESTS.parent / ".ci" / "run").read_text()
    assert 'pytest -m "numeric and not gpu and not slow"' in script
    assert all(kind in script for kind in ("ATEN_CPU_CAPABILITY", "default", "avx2", "avx512"))
