"""One thread: tests run beside each other, and sums keep their order."""

import os
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))  # so that tests can import `toys`
torch.set_num_threads(1)
os.environ["SACCADE_CACHE"] = tempfile.mkdtemp()  # figures of baselines, new in every session
