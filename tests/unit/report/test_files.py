import json
from pathlib import Path

import pages
import pytest

from saccade.report import curves, settings
from saccade.report.files import labels, predictions, read


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        read([tmp_path])


def test_a_run_reads_whole_lines_and_figures_of_every_file(tmp_path):
    folder = pages.run(tmp_path / "a", "photos")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "lo')  # the kill came here
    (folder / "notes.json").write_text('{"results": ["mine"]}')
    (run,) = read([folder])
    assert [row["step"] for row in run.rows] == [0, 10, 20, 30]
    assert len(run.results) == 4
    assert run.bad[0].name == "<i>broken.png"
    assert run.pretraining


def test_labels_are_the_shortest_ends_that_differ():
    assert labels([Path("/x/a"), Path("/x/b")]) == ["a", "b"]
    assert labels([Path("/x/a"), Path("/y/a")]) == ["x/a", "y/a"]
    with pytest.raises(ValueError, match="given twice"):
        labels([Path("/x/a"), Path("/x/a")])


def test_predictions_stay_inside_their_folder(tmp_path):
    seen = tmp_path / "run" / "seen"
    (seen / "pictures").mkdir(parents=True)
    for path in (seen / "pictures" / "0.jpg", tmp_path / "secret.jpg"):
        path.write_bytes(b"")
    rows = [{"drawn": "pictures/0.jpg"}, {"drawn": "../../secret.jpg"}, {"drawn": "gone.jpg"}, 3]
    (seen / "predictions.json").write_text(json.dumps({"pictures": rows}))
    assert predictions(tmp_path / "run") == [seen / "pictures" / "0.jpg"]


def test_thinned_lines_keep_their_peaks_and_order():
    points = [(i, float(i % 7)) for i in range(10_000)]
    points[4321] = (4321, 99.0)
    points[1234] = (1234, -99.0)
    kept = curves.thinned(points, 100)
    assert len(kept) <= 100
    assert {(4321, 99.0), (1234, -99.0)} <= set(kept)
    assert kept == sorted(kept)


def test_values_that_are_not_finite_are_not_drawn(tmp_path):
    folder = pages.run(tmp_path / "a", "photos")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "loss": NaN, "online_knn": Infinity, "warning": "x", "odd": true}')
    charts = {c["name"]: c for c in curves.charts(read([folder]))}
    assert charts["loss"]["lines"][0]["x"] == [0, 10, 20, 30]
    assert charts["loss"]["lines"][0]["y"][1] == pytest.approx(5 / 11, rel=1e-4)
    assert not {"online_knn", "warning", "odd", "step", "epoch"} & charts.keys()


def test_settings_are_named_as_on_the_command_line():
    config = {"a": 1, "b": {"c": [0.5, 1], "d": [{"e": "x"}, {"e": None}]}, "f": {}}
    assert settings.flat(config) == {
        "a": "1",
        "b.c": "[0.5, 1]",
        "b.d.0.e": "x",
        "b.d.1.e": "null",
        "f": "{}",
    }


def test_only_settings_that_differ_are_listed():
    found = settings.different([{"a": 1, "b": 2}, {"a": 1, "b": 3, "c": {"d": 4}}])
    assert found == [("b", ["2", "3"]), ("c.d", ["—", "4"])]
