"""What long work tells of its progress."""

import sys
import time

import pytest

from saccade.engine.log import counter


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_without_a_terminal_a_counter_prints_a_line_a_minute(clock, capsys):
    told = counter("pictures")
    for done in range(1, 131):
        clock[0] += 1
        told(done, 130)
    assert capsys.readouterr().err == "saccade: pictures 60/130\nsaccade: pictures 120/130\n"


def test_a_terminal_shows_one_line_that_ends_with_the_work(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    told = counter("pictures")
    for done in range(1, 4):
        clock[0] += 0.15
        told(done, 3)
    assert capsys.readouterr().err == "\rsaccade: pictures 2/3\rsaccade: pictures 3/3\n"
