"""One thread: tests run beside each other, and sums keep their order. Chance starts alike.

Shapes and types of all calls are checked, but for slow tests and whole commands: they call what
others do.
"""

import os
import random
import sys
import tempfile
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import timm  # noqa: F401  (under jaxtyping's hook it would be compiled from source)
import torch
import wandb  # noqa: F401  (likewise)

sys.path.insert(0, str(Path(__file__).parent))  # so that tests can import `toys`
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of workers, and of processes that tests start
os.environ["SACCADE_CACHE"] = tempfile.mkdtemp()  # figures of baselines, new in every session


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)  # torch.manual_seed also takes a traceback for CUDA


@pytest.fixture(autouse=True)
def _checked(request):
    slow = "slow" in request.keywords or "e2e" in request.path.parts
    jaxtyping.config.update("jaxtyping_disable", slow)
