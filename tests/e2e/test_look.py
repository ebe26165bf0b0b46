"""`saccade look` on tiny random networks."""

import json

import numpy as np
import pytest
from PIL import Image
from terminal import saccade

from saccade import looking

EVERYWHERE = {"pca", "foreground", "similarity", "neighbors"}
ATTENTIVE = EVERYWHERE | {"attention", "degeneracy"}


def width(path):
    with Image.open(path) as picture:
        return picture.width


@pytest.fixture
def pictures(tmp_path):
    """A wide and a high photograph."""
    g = np.random.default_rng(0)
    paths = []
    for i, (h, w) in enumerate(((40, 60), (70, 30))):
        x = g.integers(0, 256, (h // 10, w // 10, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(x).save(paths[-1])
    return paths


@pytest.mark.parametrize(
    ("name", "size", "kinds"),
    [
        ("vit_pico_patch4_32", 0, ATTENTIVE),
        ("resnet10_w16", 0, EVERYWHERE),
        ("nl_resnet10_w32", 64, ATTENTIVE),
        pytest.param("swin_tiny_patch4_window7_224", 64, ATTENTIVE, marks=pytest.mark.slow),
        pytest.param("convnext_tiny", 64, EVERYWHERE, marks=pytest.mark.slow),
    ],
)
def test_all_kinds_with_meaning_come_into_one_picture(name, size, kinds, pictures, tmp_path):
    out, figures = tmp_path / "seen.png", tmp_path / "seen.json"
    command = ["look", f"random:{name}", *pictures, "--image-size", size, "--width", 600]
    assert saccade(*command, "--out", out, "--json", figures) == 0
    assert width(out) == 600
    found = json.loads(figures.read_text())
    assert set(found["kinds"]) == kinds
    assert {n["picture"] for n in found["neighbors"]} == {"0.png", "1.png"}
    if "attention" in kinds:
        assert all(0 <= row["degeneracy"] <= 1 + 1e-6 for row in found["degeneracy"])
        assert all(0 < row["cells_with_60_percent"] <= 0.75 for row in found["attention"])
        assert all(0 < row["entropy"] <= 1 + 1e-6 for row in found["attention"])


def test_the_degeneracy_of_each_layer_is_printed(pictures, tmp_path, capsys):
    command = ["look", "random:nl_resnet10_w32", pictures[0], "--image-size", 32]
    assert saccade(*command, "--kind", "degeneracy", "--out", tmp_path / "x.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("degeneracy ") for line in lines)


def test_a_query_asks_a_vit_for_the_patch_there(pictures, tmp_path):
    name, found = "random:vit_pico_patch4_32", {}
    for query in ("", "0.05,0.05", "59,39"):
        looked = looking.look(name, pictures[:1], kinds=["attention"], query=query)
        found[query] = np.asarray(looked["attention"].page).tobytes()
    assert len(set(found.values())) == 3


def test_shares_and_pixels_name_the_same_point():
    assert looking.parse_query("0.25,0.75", 60, 40) == (0.25, 0.75)
    assert looking.parse_query("15,2", 60, 40) == pytest.approx((15.5 / 60, 2.5 / 40))
    assert looking.parse_query("1,1", 60, 40) == (1, 1)


def test_the_report_gets_a_sheet_for_each_kind(pictures):
    made = looking.panels("random:vit_pico_patch4_32", pictures, width=500)
    assert set(made) == ATTENTIVE
    assert all(page.width == 500 for page in made.values())


def test_a_picture_keeps_its_shape_and_gets_about_as_many_pixels():
    import torch

    y = looking.fitted(torch.rand(3, 300, 600), 64, 8)
    assert y.shape == (3, 48, 88)  # 45.3 x 90.5
    assert looking.fitted(torch.rand(3, 4, 900), 64, 16).shape[1] == 16


@pytest.mark.parametrize("method", ["mae", "pixpro"])
def test_a_run_shows_what_its_method_draws(method, pictures, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    g = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(g.integers(0, 256, (48, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    small = {
        "mae": [
            "vit_pico_patch4_32",
            "method.decoder_dim=16",
            "method.decoder_depth=1",
            "method.decoder_heads=2",
        ],
        "pixpro": ["resnet10_w16", "method.hidden=16", "method.dim=8"],
    }[method]
    sets = [f"--set={s}" for s in small[1:]]
    sets += ["--set=method.views.0.size=32", "--set=backbone.image_size=32"]
    sets += ["--set=method.views.1.size=32"] if method == "pixpro" else []
    run = tmp_path / "run"
    command = ["pretrain", folder, "--method", method, "--recipe", "small", "--steps", 1]
    command += ["--batch-size", 4, "--backbone", small[0], "--out", run, *sets]
    assert saccade(*command) == 0
    out = tmp_path / "method.png"
    assert saccade("look", run, *pictures, "--kind", "method", "--out", out) == 0
    assert width(out) == 1200
    assert "method" in looking.panels(str(run), pictures[:1])


MISTAKES = {
    "kind without meaning": (
        ["random:resnet10_w16", "PICTURE", "--kind", "attention"],
        "attention has no meaning for these weights; choose from pca, foreground",
    ),
    "unknown kind": (["random:resnet10_w16", "PICTURE", "--kind", "pcb"], "did you mean pca"),
    "query outside": (["random:resnet10_w16", "PICTURE", "--query", "70,20"], "60 x 40 pixels"),
    "no query": (["random:resnet10_w16", "PICTURE", "--query", "left"], "setting query: 'left'"),
    "no such picture": (["random:resnet10_w16", "nowhere.png"], "nowhere.png"),
    "method of random weights": (
        ["random:resnet10_w16", "PICTURE", "--kind", "method"],
        "method has no meaning",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line_and_exit_2(mistake, pictures, tmp_path, capsys):
    args, said = MISTAKES[mistake]
    args = [str(pictures[0]) if a == "PICTURE" else a for a in args]
    assert saccade("look", *args, "--out", tmp_path / "x.png") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_out_is_a_png(pictures, tmp_path, capsys):
    assert saccade("look", "random:resnet10_w16", pictures[0], "--out", tmp_path / "x.txt") == 2
    assert "is not a .png" in capsys.readouterr().err
