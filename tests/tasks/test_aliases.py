"""The table of names: in step with the documentation, with the methods, and with the tests that prove it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gentk.recipe import registry
from gentk.tasks.sample._aliases import ALIASES, elsewhere, table
from tests.tasks.test_sample_evaluate import refused

ROOT = Path(__file__).parents[2]


def test_the_documentation_has_the_table() -> None:
    assert table() in (ROOT / "docs" / "solvers.md").read_text("utf-8")


@pytest.mark.parametrize("alias", ALIASES, ids=lambda a: f"{a.library} {a.name}")
def test_every_row_is_proven_and_runs(alias) -> None:  # type: ignore[no-untyped-def]
    sources = [path.read_text("utf-8") for path in (ROOT / "tests" / "math").glob("test_*.py")]
    assert any(f"def {alias.test}(" in source for source in sources)
    registry.method_module("sample", alias.method).Config(name=alias.method, **alias.settings)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("euler_ancestral", "ancestral"),
        ("sample_dpmpp_2m_sde", "dpmpp-2m-sde"),
        ("EulerDiscreteScheduler", "ddim"),
        ("DDIMScheduler", "ddim"),
    ],
)
def test_names_from_elsewhere(name: str, method: str) -> None:
    alias = elsewhere(name)
    assert alias is not None
    assert alias.method == method
    refused(2, f"here it is: gentk sample {method}", "sample", name)


def test_other_names_are_not_understood() -> None:
    assert elsewhere("") is None
    assert elsewhere("heunn") is None
    refused(2, "did you mean `heun`", "sample", "heunn")
