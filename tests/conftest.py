"""One thread: tests run beside each other, and sums keep their order. Chance starts alike."""

import os
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # so that tests can import `toys`
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of workers, and of processes that tests start
os.environ["SACCADE_CACHE"] = tempfile.mkdtemp()  # figures of baselines, new in every session


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
