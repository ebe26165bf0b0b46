"""Search by picture and by index, against cosines of all vectors."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from terminal import saccade

from saccade import embedding, searching, weights


@pytest.fixture
def photos(tmp_path):
    """Forty small pictures and a file of another folder that equals one of them."""
    g = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(40):
        x = g.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(x).save(tmp_path / "photos" / f"{i:02}.png")
    Image.open(tmp_path / "photos" / "07.png").save(tmp_path / "mine.png")
    return tmp_path / "photos"


@pytest.fixture
def table(photos, tmp_path):
    loaded = weights.load("random:resnet10_w16", image_size=32, seed=3)
    weights.save_backbone(tmp_path / "net", loaded.backbone, loaded.config, loaded.normalize, {})
    out = tmp_path / "v.parquet"
    assert saccade("embed", tmp_path / "net", "--data", photos, "--out", out, "--index") == 0
    return out


def test_a_picture_from_elsewhere_finds_its_equal(table, photos, tmp_path, capsys):
    args = ["search", table, tmp_path / "mine.png", "--top", 4]
    assert saccade(*args, "--json", "-", "--plot", tmp_path / "sheet.png") == 0
    found = json.loads(capsys.readouterr().out)
    assert found[0]["path"] == "07.png"
    assert found[0]["cosine"] == pytest.approx(1, abs=1e-5)
    assert saccade(*args, "--exact", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out) == [
        row | {"cosine": pytest.approx(row["cosine"], abs=1e-6)} for row in found
    ]
    with Image.open(tmp_path / "sheet.png") as drawn:  # query and four neighbors in one row
        assert drawn.size == (6 * searching.SIDE, searching.SIDE + searching.TEXT)


def test_the_index_finds_what_all_cosines_find(table):
    rows = np.array(pq.read_table(table)["vector"].to_pylist())
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for i in (0, 11, 39):
        near = [j for j in np.argsort(-unit @ unit[i]) if j != i][:5]
        found = searching.search(table, f"{i:02}.png", top=5)
        assert [r["index"] for r in found] == near
        assert [r["cosine"] for r in found] == pytest.approx((unit @ unit[i])[near], abs=1e-5)


def test_other_weights_and_an_index_of_another_table_are_refused(table, photos, tmp_path, capsys):
    assert saccade("search", table, tmp_path / "mine.png", "--weights", "random:resnet10_w16") == 2
    assert "is not what made" in capsys.readouterr().err
    assert saccade("search", table, "03.png", "--weights", "random:resnet10_w16") == 2
    assert "leave weights out" in capsys.readouterr().err
    (photos / "39.png").unlink()
    kept = searching.index_path(table).read_bytes()
    assert saccade("embed", tmp_path / "net", "--data", photos, "--out", table) == 0
    searching.index_path(table).write_bytes(kept)
    assert saccade("search", table, "03.png") == 2
    assert "index of another table (40 rows)" in capsys.readouterr().err


def test_pictures_that_moved_are_named(table, photos, tmp_path):
    rows = embedding.search(table, "03.png", 2)
    searching.sheet(table, "03.png", rows)
    (photos / "00.png").unlink()
    with pytest.raises(ValueError, match="any more; embed again"):
        searching.sheet(table, "03.png", rows)
    with pytest.raises(ValueError, match="nowhere"):
        searching.sheet(table, "03.png", rows, str(tmp_path / "nowhere"))


def test_a_table_that_is_not_there_is_one_line(tmp_path, capsys):
    assert saccade("search", tmp_path / "nowhere.parquet", "03.png") == 2
    assert "is not there; let `saccade embed` write it" in capsys.readouterr().err
