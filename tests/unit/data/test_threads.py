import threading
import time

import pytest
import torch

from saccade.data.threads import ordered


def names():
    return [t.name for t in threading.enumerate() if t.name.startswith("saccade-data")]


def test_results_come_in_order_though_later_work_ends_first():
    def work(i):
        time.sleep(0.02 if i % 4 == 0 else 0)
        return i * i

    assert list(ordered(work, range(12), threads=3, ahead=4)) == [i * i for i in range(12)]


def test_work_never_runs_more_than_ahead_of_the_consumer():
    started = []
    stream = ordered(lambda i: started.append(i) or i, range(100), threads=2, ahead=3)
    for _ in range(5):
        next(stream)
    time.sleep(0.05)
    assert len(started) <= 5 + 3
    stream.close()


def test_an_error_in_a_thread_is_raised_in_the_consumer():
    def work(i):
        if i == 3:
            raise KeyError("three")
        return i

    stream = ordered(work, range(9), threads=2, ahead=2)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="three"):
        next(stream)
    assert not names()


def test_closing_early_leaves_no_thread():
    stream = ordered(lambda i: i, range(1000), threads=3, ahead=2)
    next(stream)
    assert names()
    stream.close()
    assert not names()


def test_workers_compute_on_one_core_and_the_caller_keeps_its_own_count():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        counts = list(ordered(lambda i: torch.get_num_threads(), range(2), threads=1, ahead=1))
        assert counts == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
