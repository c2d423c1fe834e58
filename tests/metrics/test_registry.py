"""The rows of published weights: addresses, checksums and licences that agree with their names."""

from __future__ import annotations

import dataclasses
import re

import pytest

from gentk.metrics import registry
from gentk.recipe.weights import Weights


@pytest.mark.parametrize("row", registry.ALL, ids=lambda row: row.name)
def test_rows(row: Weights) -> None:
    assert row.url.startswith("https://")
    assert re.fullmatch(r"([0-9a-f]{8}|[0-9a-f]{64})?", row.sha256)
    assert row.licence
    assert row.note
    if match := re.search(r"-([0-9a-f]{8})\.pth$", row.name):  # torch-hub's and openmmlab's naming
        assert row.sha256.startswith(match[1])
    if match := re.search(r"/([0-9a-f]{64})/", row.url):  # OpenAI's
        assert row.sha256 == match[1]
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.name = "other"  # type: ignore[misc]


def test_rows_have_files_of_their_own() -> None:
    assert len({row.name for row in registry.ALL}) == len(registry.ALL) == 11
    assert registry.INCEPTION.size == 95_628_359
