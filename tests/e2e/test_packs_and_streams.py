"""Packs and streams through the command line. Commands run inside this process where they may."""

import http.server
import io
import json
import signal
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
from PIL import Image
from terminal import saccade

RUN = [
    *("--method", "simclr", "--recipe", "small", "--backbone", "resnet10_w16"),
    *("--batch-size", "8", "--set", "method.hidden=32", "--set", "engine.log_every=1"),
    *("--set", "engine.knn_every=0", "--set", "engine.save_seconds=0"),
]


def weights(out):
    return (out / "backbone" / "model.safetensors").read_bytes()


def picture(g):
    coarse = Image.fromarray(g.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return coarse.resize((40, 36), Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path):
    g = np.random.default_rng(0)
    for i in range(32):
        path = tmp_path / "photos" / ("train", "test")[i > 23] / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(g).save(path)
    return tmp_path / "photos"


@pytest.fixture
def url(tmp_path, monkeypatch):
    """Three tars of 16 pictures behind a URL."""
    g = np.random.default_rng(0)
    root = tmp_path / "served"
    root.mkdir()
    for shard in range(3):
        with tarfile.open(root / f"x-{shard}.tar", "w") as tar:
            for i in range(16):
                data = io.BytesIO()
                picture(g).save(data, "JPEG")
                info = tarfile.TarInfo(f"{i}.jpg")
                info.size = len(data.getvalue())
                tar.addfile(info, io.BytesIO(data.getvalue()))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(root), **kwargs)

        def log_message(self, format, *args):
            pass

    monkeypatch.setenv("SACCADE_DATASETS", str(tmp_path / "home"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/x-{{0..2}}.tar"
        server.shutdown()
        thread.join()


def test_a_cache_that_keeps_pictures_as_they_are_changes_nothing(photos, tmp_path):
    args = ["pretrain", photos, *RUN, "--steps", 3]
    assert saccade(*args, "--out", tmp_path / "a") == 0
    for out in ("b", "c"):  # made, then used again
        assert saccade(*args, "--cache", tmp_path / "pack", "--out", tmp_path / out) == 0
        assert weights(tmp_path / out) == weights(tmp_path / "a")
        results = [json.loads((tmp_path / x / "results.json").read_text()) for x in ("a", out)]
        assert results[0]["results"] == results[1]["results"]


def test_a_pack_is_data(photos, tmp_path, capsys):
    (photos / "train" / "a" / "broken.jpg").write_text("words")
    args = ["pack", photos, "--size", 32, "--out", tmp_path / "pack"]
    assert saccade(*args) == 0
    said = capsys.readouterr().err
    assert "left out a/broken.jpg: not a picture" in said
    assert "32 pictures in" in said
    assert saccade(*args, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 32
    run = [*RUN, "--steps", 2, "--out", tmp_path / "run"]
    assert saccade("pretrain", tmp_path / "pack", *run) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    assert {r["n"] for r in results} == {8}


def test_a_cache_of_other_data_gets_one_line(photos, tmp_path, capsys):
    assert saccade("pack", photos / "test", "--out", tmp_path / "pack") == 0
    capsys.readouterr()
    args = ["pretrain", photos, *RUN, "--steps", 2, "--out", tmp_path / "run"]
    assert saccade(*args, "--cache", tmp_path / "pack") == 2
    said = capsys.readouterr().err
    assert "was packed from other pictures" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_killed_run_on_a_stream_sees_exactly_the_rest(url, tmp_path):
    args = ["pretrain", url, *RUN, "--steps", 14, "--out"]  # more than two epochs
    assert saccade(*args, tmp_path / "whole") == 0
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "saccade", *map(str, args), out]
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not list(out.glob("checkpoints/step-*")):
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (out / "done.json").exists()
    assert saccade(*args, out, "--resume") == 0
    assert weights(out) == weights(tmp_path / "whole")


def test_what_a_stream_cannot_do_is_refused(url, tmp_path, capsys):
    args = ["pretrain", url, *RUN, "--steps", 2, "--out", tmp_path / "run"]
    assert saccade(*args, "--cache", tmp_path / "pack") == 2
    assert "engine.cache.folder: " in capsys.readouterr().err
    assert saccade(*args, "--set", "limit=8") == 2
    assert "setting limit: 8 needs pictures at hand" in capsys.readouterr().err
