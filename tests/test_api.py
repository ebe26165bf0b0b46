"""Names that users may rely on. Removing one is a decision: it fails here first."""

import importlib
import json
from pathlib import Path

import pytest

API = json.loads((Path(__file__).parent / "api.json").read_text())


@pytest.mark.parametrize("module", API)
def test_public_names_are_there(module):
    found = importlib.import_module(module)
    missing = [name for name in API[module] if not hasattr(found, name)]
    assert missing == []


def test_every_method_and_protocol_of_the_list_is_still_there():
    from saccade import evals, methods

    assert {"dino", "mae", "moco", "simclr"} <= set(methods.names())
    assert {"knn-dino", "knn-lightly", "linear-dino", "linear-mae", "linear-moco"} <= set(
        evals.names()
    )
    assert all({"demo", "small", "paper"} <= set(methods.recipes(n)) for n in methods.names())
