from dataclasses import replace

import pages
import pytest

from saccade.report import words
from saccade.report.files import read


def test_the_summary_compares_with_random_weights_and_the_best_trivial_baseline(tmp_path):
    (run,) = read([pages.run(tmp_path / "a", "photos")])
    (said,) = words.summarize(run).verdicts
    assert said.startswith("after pretraining, knn-dino/1 top1@20: 60.0 % (50.0 to 70.0, n 100)")
    assert "better than random weights (40.0 %) by +20.0 points (+1" in said
    assert "worse than color-histogram (70.0 %): -10.0 points (-1" in said


def test_a_difference_is_paired_and_needs_the_same_pictures():
    before, after = pages.figure("a", "p/1", "m", 40), pages.figure("b", "q/1", "m", 41)
    gap = words.difference(before, after)
    assert gap.value == pytest.approx(0.01)
    assert gap.high - gap.low < 0.05  # unpaired, each alone has +-10 points
    elsewhere = replace(after, settings={"test": "other pictures"})
    assert words.difference(before, elsewhere) is None
    assert words.difference(before, replace(after, hits="")) is None


def test_what_is_not_clear_is_not_called_better():
    before = pages.figure("random weights", "p/1", "m", 40)
    after = pages.figure("mine", "p/1", "m", 40)
    assert "not clearly better than random weights" in words._verdict(after, [before, after])


@pytest.mark.parametrize("name", ["random weights", "random:vit_tiny", "runs/a/initial"])
def test_untrained_networks_are_no_subject(name):
    assert words.subject([pages.figure(name, "p/1", "m", 40)]) == []


def test_a_run_that_trains_says_its_newest_step_and_health(tmp_path):
    folder = pages.run(tmp_path / "a", "photos", done=False)
    (run,) = read([folder])
    summary = words.summarize(run)
    assert summary.state == "not finished"
    assert "last report is of step 30" in summary.trained
    assert "no collapse (feature_std 0.600, rankme 12.0)" in summary.health
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "feature_std": 0.001, "rankme": 9, "uniformity": 0}\n')
    (run,) = read([folder])
    assert words.summarize(run).state == "collapsed"
