"""What every mechanism of attention promises, over every file of attention/."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mechanisms import MADE, picture
from torch.overrides import TorchFunctionMode

from saccade import attention

FOLDER = Path(attention.__file__).parent


@pytest.fixture(params=MADE, ids=str)
def layer(request):
    torch.manual_seed(0)
    return MADE[request.param]()


def test_every_file_is_here():
    files = {p.stem for p in FOLDER.glob("*.py")} - {"__init__"}
    assert files == {name.partition(" ")[0] for name in MADE}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("[!_]*.py")), ids=lambda p: p.stem)
def test_a_file_cites_its_paper_and_needs_only_torch(path):
    tree = ast.parse(path.read_text())
    assert "arXiv:" in ast.get_docstring(tree)
    froms = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and not n.level}
    assert froms <= {"__future__", "typing", "jaxtyping", "torch"}


def test_the_map_keeps_its_size_and_gradient_reaches_every_weight(layer):
    x = picture().requires_grad_()
    y = layer(x)
    assert y.shape == x.shape
    (y * torch.randn_like(y)).sum().backward()
    assert [n for n, p in layer.named_parameters() if p.grad is None] == []
    assert x.grad.abs().min() > 0


def test_channels_last_gives_the_same(layer):
    x = picture()
    y = layer.eval()(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(y, layer(x), atol=1e-5, rtol=1e-4)


def test_rows_of_a_batch_do_not_mix(layer):
    x = picture()
    torch.testing.assert_close(layer.eval()(x)[1:], layer(x[1:]), atol=1e-5, rtol=1e-4)


def test_half_precision_stays_near(layer):
    x = picture()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer.eval()(x)
    exact = layer(x)
    assert (y - exact).norm() < 0.05 * exact.norm()


class Softmaxes(TorchFunctionMode):
    """Which types softmaxes are given, fused ones apart, whose sums are single within."""

    def __init__(self):
        super().__init__()
        self.types = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") == "softmax":
            self.types.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_softmaxes_are_in_single_precision_under_autocast(layer):
    with torch.autocast("cpu", torch.bfloat16), Softmaxes() as seen:
        layer.eval()(picture())
    assert set(seen.types) <= {torch.float32}


def test_state_makes_the_same_layer(layer, request):
    other = MADE[request.node.callspec.params["layer"]]()
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other.eval()(picture()), layer.eval()(picture()))


@pytest.mark.slow
def test_each_compiles_into_one_graph_that_gives_the_same():
    """In a process of its own: shape checks of the tests cannot be traced."""
    tests = Path(__file__).parents[1]
    env = os.environ | {"PYTHONPATH": f"{FOLDER.parents[1]}:{tests}"}
    script = Path(__file__).with_name("compiled_attention.py")
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, check=True)
    differences = json.loads(done.stdout)
    assert differences.keys() == MADE.keys()
    assert max(differences.values()) < 1e-5
