import io
import json
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from saccade.evals import Result, gain, names, read_results, summary, table, write_results
from saccade.evals.results import pack, unpack


def result(correct, **changes):
    correct = np.array(correct, dtype=bool)
    values = {
        "model": "run",
        "protocol": "knn-dino/1",
        "metric": "top1@20",
        "value": float(correct.mean()),
        "low": 0.25,
        "high": 0.75,
        "n": len(correct),
        "settings": {"test": "a"},
        "hits": pack(correct),
    }
    return Result(**(values | changes))


def test_hits_come_back_for_any_count():
    for n in (1, 7, 8, 9, 1000):
        correct = np.random.default_rng(n).random(n) < 0.5
        assert (unpack(pack(correct), n) == correct).all()


def test_a_file_gives_the_results_back_and_is_whole(tmp_path):
    path = tmp_path / "deep" / "results.json"
    write_results(path, [result([1, 0])], {"seed": 3})
    assert read_results(path) == [result([1, 0])]
    assert json.loads(path.read_text())["seed"] == 3
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_a_figure_that_is_no_number_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(tmp_path / "r.json", [result([1], value=float("nan"))])
    assert not (tmp_path / "r.json").exists()


def test_table_is_in_percent_and_names_the_protocol():
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table([result([1, 0])]))
    text = console.export_text()
    for word in ("knn-dino/1", "50.0", "25.0 to 75.0", "top1@20", "2"):
        assert word in text


def test_gain_pairs_the_pictures():
    found = gain(result([1, 0, 0, 0]), result([1, 1, 1, 0]))
    assert found.value == 0.5
    assert found.low >= 0


@pytest.mark.parametrize(
    "other", [{"protocol": "knn-dino/2"}, {"metric": "top1@10"}, {"settings": {"test": "b"}}]
)
def test_gain_refuses_what_is_not_the_same_question(other):
    with pytest.raises(ValueError, match="differ in protocol or test pictures"):
        gain(result([1, 0]), result([1, 0], **other))


def test_names_and_summaries_need_no_torch():
    code = (
        "import sys; from saccade import evals; "
        "print(*[n + ': ' + evals.summary(n) for n in evals.names()], sep='\\n'); "
        "assert 'torch' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == len(names()) >= 5
    assert summary("hog") not in run.stdout
