"""Pictures with masks: forms of the same labels, class lists, and what is wrong with files."""

import os
import tarfile
from pathlib import Path

import masks
import numpy as np
import pytest
from PIL import Image

from saccade.core import IGNORED
from saccade.data import class_list
from saccade.data.segmentation import (
    CAMVID,
    in_memory_masked,
    open_masked,
    relabeled,
)
from saccade.data.voc import VOC


@pytest.fixture
def splits():
    return masks.draw(3, 0), masks.draw(2, 1)


FORMS = {
    "folders": (masks.folders, ("train", "val"), masks.CLASSES),
    "colored": (masks.colored, ("train", "test"), masks.CLASSES),
    "camvid": (masks.camvid, ("train", "test"), CAMVID[:11]),
    "ade": (masks.ade, ("training", "validation"), masks.CLASSES),
    "voc": (masks.voc, ("train", "val"), ("background", *VOC)),
}
NUMBERS = {"camvid": [3, 5, 0]}  # of ground, water and sky


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_labels(tmp_path, splits, form):
    write, names, classes = FORMS[form]
    root = write(tmp_path, dict(zip(names, splits, strict=True)))
    number = np.array([*NUMBERS.get(form, [0, 1, 2]), *[IGNORED] * 253])
    for split, (pictures, labels) in zip(("train", "test"), splits, strict=True):
        data = open_masked(str(root), split=split)
        assert data.classes == classes
        assert data.split == split
        assert data.bad == []
        assert len(data.pictures) == len(pictures)
        for i, mine in enumerate(labels):
            x = data.pictures.read(i).numpy()
            np.testing.assert_array_equal(x[3], number[mine])
            if form != "camvid":  # WebP loses
                np.testing.assert_array_equal(x[:3], pictures[i].transpose(2, 0, 1))


def test_data_without_splits_comes_whole(tmp_path, splits):
    root = masks.folders(tmp_path, {"": splits[0]})
    assert open_masked(str(root)).split == ""
    assert len(open_masked(str(root), split="test").pictures) == 3


def test_later_masks_of_voc_are_for_training(tmp_path, splits):
    root = masks.voc(tmp_path, dict(zip(("train", "val"), splits, strict=True)))
    lists = root / "ImageSets" / "Segmentation"
    (lists / "train_aug.txt").write_text("train_0\nval_1\n")
    save = root / "SegmentationClassAug"
    save.mkdir()
    for name in ("train_0", "val_1"):
        Image.fromarray(np.full((40, 56), 7, np.uint8)).save(save / f"{name}.png")
    train, test = (open_masked(str(root), split=s) for s in ("train", "test"))
    assert [train.pictures.name(i) for i in range(2)] == ["train_0.png", "val_1.png"]
    assert (train.pictures.read(1)[3] == 7).all()
    assert len(test.pictures) == 2


def test_names_of_masks_may_end_in_words(tmp_path, splits):
    root = masks.folders(tmp_path, {"": splits[0]})
    for i, end in enumerate(("_mask", "_L")):
        (root / "masks" / f"{i}.png").rename(root / "masks" / f"{i}{end}.png")
    data = open_masked(str(root))
    assert len(data.pictures) == 3
    np.testing.assert_array_equal(data.pictures.read(1)[3].numpy(), splits[0][1][1])


def test_broken_files_are_left_out_and_named(tmp_path, splits):
    root = masks.folders(tmp_path, {"train": masks.draw(6)})
    folder = root / "masks" / "train"
    (folder / "0.png").unlink()
    (folder / "1.png").write_bytes(b"broken")
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(folder / "2.png")
    Image.fromarray(np.full((40, 56), 77, np.uint8)).save(folder / "3.png")
    Image.fromarray(np.zeros((40, 56, 3), np.uint8)).save(folder / "4.png")
    data = in_memory_masked(open_masked(str(root)), budget=1 << 20, threads=1)
    assert [data.pictures.name(i) for i in range(len(data.pictures))] == ["5.png"]
    told = " | ".join(f"{b.name}: {b.reason}" for b in data.bad)
    for words in (
        "0.png: has no mask",
        "1.png: is no mask in PNG",
        "2.png: its mask has 8 x 9 pixels, the picture 56 x 40",
        "3.png: pixels of 77 are not in the class list",
        "4.png: is RGB, and the class list gives no colors",
    ):
        assert words in told


def test_held_pictures_equal_read_ones(tmp_path, splits):
    data = open_masked(str(masks.folders(tmp_path, {"train": splits[0]})))
    held = in_memory_masked(data, budget=40 * 56 * 4 + 1, threads=1)  # one of three fits
    for i in range(3):
        assert (held.pictures.read(i) == data.pictures.read(i)).all()


def test_other_orders_of_classes_are_numbered_as_in_training(tmp_path, splits):
    root = masks.folders(tmp_path, {"train": splits[0]})
    data = open_masked(str(root))
    turned = relabeled(data, ("sky", "road", "ground", "water"))
    want = np.array([2, 3, 0, *[IGNORED] * 253])[splits[0][1][0]]
    np.testing.assert_array_equal(turned.pictures.read(0)[3].numpy(), want)
    with pytest.raises(ValueError, match="'water' was not trained"):
        relabeled(data, ("ground", "sky"))


LISTS = {
    "names": (["ground", "water", "sky"], [0, 1, 2, 255], [0, 1, 2, IGNORED]),
    "numbers": (["2 ground", "5: sea water", "7,sky"], [0, 2, 5, 7, 255], [255, 0, 1, 2, 255]),
    "void": (["0 unlabeled", "1 ground"], [0, 1, 255], [255, 0, 255]),
    "zero is a class": (["0 ground", "255 sky"], [0, 255], [0, 1]),
    "colors": (["1 0 0 sea water", "0 0 2 sky"], [2, 1 << 16], [1, 0]),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_classes(name):
    lines, stored, labels = LISTS[name]
    found = class_list.parse(lines)
    assert found.stored.tolist() == stored
    assert found.labels.tolist() == labels


def test_coco_stuff_counts_its_masks_from_the_second_line():
    lines = ["0: unlabeled", "1: person", *(f"{k}: c{k}" for k in range(2, 183))]
    found = class_list.parse(lines)
    assert len(found.classes) == 182
    values = np.array([[0, 181, 255]])
    assert found.labels_of(values).tolist() == [[0, 181, IGNORED]]
    assert found.classes[0] == "person"


WRONG = {
    "empty": ([], "is empty"),
    "mixed": (["1 ground", "sky"], "some have none"),
    "no numbers": (["name,color", "sky,blue"], "neither r, g, b nor id"),
    "words": (["name,r,g,b", "sky,1,2,blue"], "lacks whole numbers"),
    "bright": (["1 2 300 sky"], "not within 0..255"),
    "twice": (["4 sky", "4 ground"], "0x4 stands twice"),
    "many": ([f"c{k}" for k in range(255)], "too many"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_mistake_in_a_list_is_named(what):
    lines, words = WRONG[what]
    with pytest.raises(ValueError, match=words):
        class_list.parse(lines)


def test_a_mistake_in_the_data_is_named(tmp_path, splits):
    with pytest.raises(ValueError, match="no such folder"):
        open_masked(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="has no masks; give images/"):
        open_masked(str(tmp_path))
    root = masks.folders(tmp_path / "x", {"train": splits[0]})
    with pytest.raises(ValueError, match="no test or val folder"):
        open_masked(str(root), split="test")
    (root / "classes.txt").write_text("1 ground\nsky\n")
    with pytest.raises(ValueError, match=r"classes\.txt: some lines"):
        open_masked(str(root))
    (root / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"add classes\.txt with a name a line"):
        open_masked(str(root))
    for mask in (root / "masks" / "train").iterdir():
        mask.unlink()
    (root / "classes.txt").write_text("ground\n")
    with pytest.raises(ValueError, match="none of the 3 pictures"):
        open_masked(str(root))


@pytest.mark.slow
def test_camvid_has_the_pixels_that_its_readme_counts(tmp_path):
    shared = Path(os.environ.get("SACCADE_DATA", "")) / "camvid" / "camvid.tar"
    if not shared.is_file():
        pytest.skip("SACCADE_DATA has no camvid")
    with tarfile.open(shared) as tar:
        tar.extractall(tmp_path, filter="data")
    data = open_masked(str(tmp_path / "camvid"))
    test = open_masked(str(tmp_path / "camvid"), split="test")
    assert (len(data.pictures), len(test.pictures)) == (367, 233)
    assert data.classes[0] == "sky"
    assert data.bad == test.bad == []
    held = in_memory_masked(data, budget=1 << 30, threads=2)
    assert held.bad == []
    labels = np.stack([held.pictures.read(i)[3].numpy() for i in range(367)])
    shares = np.bincount(labels.ravel(), minlength=256) / labels.size
    whole = np.array([19.2, 29.2, 1.2, 35.5, 8.1, 13.5, 1.3, 1.7, 5.6, 0.8, 0.6])  # of 701, M
    np.testing.assert_allclose(shares[:11], whole / 121.1, atol=0.04)
    assert shares[:11].sum() + shares[IGNORED] == pytest.approx(1)
