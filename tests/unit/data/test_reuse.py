import numpy as np
import torch

from saccade.data.reuse import Pool


def test_memory_comes_back_only_when_nothing_looks_at_it():
    pool = Pool(pin=False)
    first = pool.take(12, np.dtype(np.float32))
    start, view = first.data_ptr(), first[6:].view(2, 3)
    view.fill_(7.0)
    del first
    second = pool.take(12, np.dtype(np.float32))
    assert second.data_ptr() != start
    second.zero_()
    assert torch.equal(view, torch.full((2, 3), 7.0))
    del view
    assert pool.take(12, np.dtype(np.float32)).data_ptr() == start


def test_no_more_memory_is_made_than_is_in_use_at_once():
    pool = Pool(pin=False)
    starts = {pool.take(8, np.dtype(np.uint8)).data_ptr() for _ in range(20)}
    assert len(starts) == 1
