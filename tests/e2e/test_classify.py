"""Few labels as users meet them: pretrain, fine-tune, distill, propagate, predict."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from terminal import saccade

from saccade import training

TINY = [
    *("--backbone", "resnet10_w16", "--batch-size", "12", "--workers", "1", "--steps", "2"),
    *("--set", "engine.log_every=1"),
]
FROM = TINY[2:]  # weights bring their backbone


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """48 training and 12 test pictures of three classes, darker to brighter."""
    root, g = tmp_path_factory.mktemp("data") / "photos", np.random.default_rng(0)
    for split, n in (("train", 16), ("test", 4)):
        for k, name in enumerate("abc"):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                x = g.integers(0, 60, (32, 32, 3)) + 80 * k
                Image.fromarray(x.astype(np.uint8)).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    args = ["--method", "simclr_v2", "--recipe", "small", *TINY, "--set", "engine.knn_every=0"]
    assert saccade("pretrain", data, *args, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def tuned(data, pretrained, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tuned"
    few = ["--set", "system.labels.count=24", "--set", "system.head_layers=1"]
    assert (
        saccade("train", "classify", data, "--weights", pretrained, *FROM, *few, "--out", out) == 0
    )
    return out


def test_fine_tuning_starts_at_the_kept_layer_and_names_its_labels(data, pretrained, tuned):
    results = json.loads((tuned / "results.json").read_text())["results"]
    assert [(r["protocol"], r["metric"], r["n"]) for r in results] == [("classify/1", "top1", 12)]
    assert all(r["low"] <= r["value"] <= r["high"] for r in results)
    run, _ = training.load(tuned)
    kept = load_file(pretrained / "heads.safetensors")
    start = training.build(run).state_dict()
    assert all(torch.equal(start[k], kept[k]) for k in start if k.startswith("projector."))
    lines = (tuned / "labels.txt").read_text().splitlines()
    assert len(lines) == 24
    assert sorted(line.split("\t")[1] for line in lines) == [*"a" * 8, *"b" * 8, *"c" * 8]


def test_the_list_of_labels_trains_the_same_pictures(data, pretrained, tuned, tmp_path):
    few = ["--set", f"system.labels.file={tuned / 'labels.txt'}", "--set", "system.head_layers=1"]
    args = [
        "train",
        "classify",
        data,
        "--weights",
        pretrained,
        *FROM,
        *few,
        "--out",
        tmp_path / "x",
    ]
    assert saccade(*args) == 0
    a, b = (load_file(x / "system.safetensors") for x in (tuned, tmp_path / "x"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_resumed_run_ends_in_the_same_bits(data, tuned, tmp_path):
    again = tmp_path / "again"
    mixed = ["--set", "system.mix.mixup=0.8", "--set", "system.mix.erase=0.5"]
    saved = ["--set", "engine.save_seconds=0", "--set", "engine.keep=9"]
    args = ["train", "classify", data, *TINY, *mixed, *saved, "--out"]
    assert saccade(*args, again) == 0
    shutil.copytree(again, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000002")
    (tmp_path / "cut" / "system.safetensors").unlink()
    assert saccade(*args, tmp_path / "cut", "--resume") == 0
    a, b = (load_file(tmp_path / x / "system.safetensors") for x in ("again", "cut"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_predictions_name_classes_and_confidences(data, tuned, tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in ("0.png", "1.png"):
        shutil.copy(data / "test" / "c" / name, tmp_path / "pictures" / name)
    (tmp_path / "pictures" / "2.png").write_bytes(b"broken")
    assert saccade("predict", tuned, tmp_path / "pictures", "--out", tmp_path / "seen") == 0
    found = json.loads((tmp_path / "seen" / "predictions.json").read_text())
    assert found["classes"] == ["a", "b", "c"]
    with (tmp_path / "seen" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["picture"] for r in rows] == [p["picture"] for p in found["pictures"]]
    assert [r["picture"] for r in rows] == ["0.png", "1.png"]
    for row, picture in zip(rows, found["pictures"], strict=True):
        assert sum(picture["best"].values()) == pytest.approx(1, abs=1e-5)
        assert list(picture["best"].values()) == sorted(picture["best"].values(), reverse=True)
        assert row["class"] == picture["class"] == next(iter(picture["best"]))
        assert float(row["confidence"]) == pytest.approx(picture["confidence"], abs=1e-6)
    one = data / "test" / "a" / "0.png"
    assert saccade("predict", tuned, one, "--out", tmp_path / "one") == 0
    assert len(json.loads((tmp_path / "one" / "predictions.json").read_text())["pictures"]) == 1


def test_a_student_learns_from_the_tuned_run_without_labels(data, pretrained, tuned, tmp_path):
    unlabelled = tmp_path / "unlabelled"
    unlabelled.mkdir()
    for k, path in enumerate(sorted((data / "train").rglob("*.png"))):
        shutil.copy(path, unlabelled / f"{k}.png")
    args = ["train", "distill", unlabelled, "--eval-data", data, "--set", f"system.teacher={tuned}"]
    assert saccade(*args, *TINY, "--out", tmp_path / "student") == 0
    results = json.loads((tmp_path / "student" / "results.json").read_text())["results"]
    assert [r["model"] for r in results] == ["distill"]
    run, _ = training.load(tmp_path / "student")
    assert run.system.classes == ("a", "b", "c")
    assert not (tmp_path / "student" / "labels.txt").exists()
    few = ["--set", "system.alpha=0.5", "--set", "system.labels.count=6"]
    again = ["train", "distill", data, "--set", f"system.teacher={tmp_path / 'student'}", *few]
    kept = ["--weights", pretrained, "--set", "system.head_layers=2"]
    assert saccade(*again, *FROM, *kept, "--out", tmp_path / "second") == 0
    assert len((tmp_path / "second" / "labels.txt").read_text().splitlines()) == 6


@pytest.mark.parametrize("algorithm", ["cut", "vote"])
def test_guessed_labels_train_a_classifier(data, pretrained, tmp_path, algorithm):
    guesses = tmp_path / "guesses.txt"
    args = ["propagate", pretrained, "--data", data, "--labels", 6, "--algorithm", algorithm]
    assert saccade(*args, "--out", guesses, "--json", tmp_path / "found.json") == 0
    lines = [line.split("\t") for line in guesses.read_text().splitlines()]
    assert [len(line) for line in lines] == [2] * 6 + [3] * 42
    confidence = [float(line[2]) for line in lines[6:]]
    assert confidence == sorted(confidence, reverse=True)
    found = json.loads((tmp_path / "found.json").read_text())["results"]
    by = {r["metric"]: r for r in found}
    truth = [line[0].split("/")[0] == line[1] for line in lines[6:]]
    assert by["top1"]["value"] == pytest.approx(np.mean(truth))
    assert by["top1"]["n"] == 42
    few = [f"system.labels.{x}" for x in (f"file={guesses}", "ratio=0.5", "weighted=true")]
    sets = [word for x in few for word in ("--set", x)]
    args = ["train", "classify", data, "--weights", pretrained, *FROM, *sets]
    assert saccade(*args, "--out", tmp_path / "run") == 0
    run, _ = training.load(tmp_path / "run")
    assert run.system.labels.weighted


MISTAKES = {
    "a head that was not kept": "keeps 2 layers of a head",
    "a head without weights of simclr_v2": "keeps 0 layers of a head",
    "no teacher": "system.teacher is missing",
    "strange test classes": "class 'd' is not among the classes",
    "no labels": "have no labels",
    "propagating all": "every picture has one",
    "two ways to choose labels": "exclude each other",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line_and_exit_2(data, pretrained, tuned, tmp_path, mistake, capsys):
    strange, plain = tmp_path / "strange", tmp_path / "plain"
    for folder, name in ((strange / "a", "0.png"), (strange / "d", "0.png"), (plain, "0.png")):
        folder.mkdir(parents=True)
        shutil.copy(data / "test" / "a" / "0.png", folder / name)
    classify = ["train", "classify", data, *FROM, "--out", tmp_path / "x"]
    layers = ["--set", "system.head_layers=3"]
    wrong = {
        "a head that was not kept": [*classify, "--weights", pretrained, *layers],
        "a head without weights of simclr_v2": [*classify, "--weights", tuned, *layers],
        "no teacher": ["train", "distill", data, *TINY, "--out", tmp_path / "x"],
        "strange test classes": [*classify, "--eval-data", strange],
        "no labels": ["train", "classify", plain, *TINY, "--out", tmp_path / "x"],
        "propagating all": ["propagate", tuned, "--data", data, "--out", tmp_path / "x"],
        "two ways to choose labels": [
            *classify,
            *("--set", "system.labels.count=6", "--set", "system.labels.share=0.5"),
        ],
    }
    capsys.readouterr()
    assert saccade(*wrong[mistake]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert MISTAKES[mistake] in told


def test_the_confidence_of_a_guess_is_judged_by_pairs():
    from saccade.propagating import auc

    hits = np.array([True, True, False, False, True])
    confidence = np.array([0.9, 0.5, 0.5, 0.1, 0.2])
    pairs = [(a, b) for a in confidence[hits] for b in confidence[~hits]]
    want = np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs])
    assert auc(hits, confidence, np.ones(5)) == pytest.approx(want)
    doubled = auc(np.repeat(hits, 2), np.repeat(confidence, 2), np.ones(10))
    assert auc(hits, confidence, np.full(5, 2.0)) == pytest.approx(doubled)
