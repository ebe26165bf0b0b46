"""Detection data: three forms of the same boxes, and what is wrong with files."""

import json
import os
from pathlib import Path

import boxes
import numpy as np
import pytest
from pycocotools import mask as reference

from saccade.data import detection
from saccade.data.detection import Entry, bitmaps, checked, in_memory_annotated, open_annotated


@pytest.fixture
def splits():
    return boxes.draw(3, 0), boxes.draw(2, 1)


def forms(root, train, test):
    yield boxes.coco(root / "coco", {"train2017": train, "val2017": test})
    yield boxes.voc(root / "voc", {"train": train, "val": test})
    yield boxes.yolo(root / "yolo", {"train": train, "val": test})


def test_three_forms_of_the_same_boxes_agree(tmp_path, splits):
    for root in forms(tmp_path, *splits):
        for split, (pictures, objects) in zip(("train", "test"), splits, strict=True):
            data = open_annotated(str(root), split=split)
            assert data.classes == boxes.CLASSES
            assert data.split == split
            assert data.bad == []
            for i, mine in enumerate(objects):
                np.testing.assert_allclose(data.objects[i].boxes, [o[1:] for o in mine], atol=1e-4)
                assert data.objects[i].labels.tolist() == [o[0] for o in mine]
                np.testing.assert_array_equal(
                    data.pictures.read(i).permute(1, 2, 0).numpy(), pictures[i]
                )


def test_outlines_of_coco_and_yolo_cover_the_squares(tmp_path, splits):
    train, test = splits
    roots = (
        boxes.coco(tmp_path / "c", {"train2017": train, "val2017": test}),
        boxes.yolo(tmp_path / "y", {"train": train, "val": test}, outlines=True),
    )
    for root in roots:
        data = open_annotated(str(root))
        for objects, mine in zip(data.objects, train[1], strict=True):
            masks = bitmaps(objects, 48, 64)
            for mask, (_, x0, y0, x1, y1) in zip(masks, mine, strict=True):
                want = np.zeros((48, 64), np.uint8)
                want[y0:y1, x0:x1] = 1
                np.testing.assert_array_equal(mask, want)
            np.testing.assert_allclose(objects.areas, masks.sum((1, 2)), rtol=1e-4)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'
def test_every_kind_of_outline_equals_pycocotools():
    g = np.random.default_rng(0)
    polygons = [(g.uniform(0, 30, 10)).tolist(), (g.uniform(0, 30, 8)).tolist()]
    merged = reference.merge(reference.frPyObjects(polygons, 32, 40))
    bits = reference.decode(merged)
    runs = np.diff(np.flatnonzero(np.diff(np.r_[-1, bits.flatten("F").astype(int), -1])))
    if bits.flatten("F")[0]:
        runs = np.r_[0, runs]
    outlines = (polygons, {"size": [32, 40], "counts": runs.tolist()}, merged)
    n = len(outlines)
    objects = detection.Objects(
        boxes=np.zeros((n, 4), np.float32),
        labels=np.zeros(n, np.int64),
        crowd=np.zeros(n, bool),
        difficult=np.zeros(n, bool),
        areas=np.zeros(n, np.float32),
        outlines=outlines,
    )
    for mask in bitmaps(objects, 32, 40):
        np.testing.assert_array_equal(mask, bits)


def test_boxes_are_cut_to_the_picture_and_those_without_area_are_told():
    entry = Entry(name="a.jpg", height=20, width=30)
    entry.add((-5, 2, 10, 8), 0)
    entry.add((4, 4, 4, 9), 1)
    entry.add((31, 2, 40, 8), 1)
    entry.add((float("nan"), 0, 3, 3), 1)
    entry.add((25, 10, 99, 99), 1, crowd=True)
    objects, bad = checked(entry)
    assert objects.boxes.tolist() == [[0, 2, 10, 8], [25, 10, 30, 20]]
    assert objects.crowd.tolist() == [False, True]
    assert [b.name for b in bad] == ["a.jpg"] * 3
    assert "no area" in bad[0].reason


def test_difficult_and_broken_files_of_voc(tmp_path, splits):
    root = boxes.voc(tmp_path, {"train": splits[0], "val": splits[1]})
    file = root / "Annotations" / "train_0.xml"
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1", 1))
    (root / "Annotations" / "train_1.xml").write_text("<annotation><object>")
    (root / "JPEGImages" / "train_2.png").write_bytes(b"broken")
    data = open_annotated(str(root))
    assert data.objects[0].difficult.tolist() == [True, False]
    assert [b.name for b in data.bad] == ["train_1.xml"]
    kept = in_memory_annotated(data, budget=1 << 20, threads=1)
    assert len(kept.objects) == len(kept.pictures) == 1
    assert {b.name for b in kept.bad} == {"train_1.xml", "train_2.png"}
    assert kept.objects[0].difficult.tolist() == [True, False]


def test_voc_of_the_challenge_has_its_twenty_classes_and_tests_on_test(tmp_path, splits):
    root = boxes.voc(tmp_path, {"trainval": splits[0], "train": splits[0], "test": splits[1]})
    for file in (root / "Annotations").iterdir():
        file.write_text(file.read_text().replace("blue", "dog").replace("red", "cat"))
    data = open_annotated(str(root), split="train")
    assert len(data.classes) == 20
    assert data.classes[data.objects[0].labels[0]] == "dog"
    assert len(data.objects) == 3
    assert len(open_annotated(str(root), split="test").objects) == 2


def wrong(tmp_path, train, test, what):
    """A folder or file with one mistake."""
    if what == "nowhere":
        return tmp_path / "nowhere"
    if what == "no annotations":
        boxes.save(tmp_path / "flat", train[0])
        return tmp_path / "flat"
    if what == "no objects":
        return boxes.coco(tmp_path / "c", {"train2017": (train[0], [[]] * 3)})
    if what.startswith("yolo"):
        root = boxes.yolo(tmp_path / "y", {"train": train, "val": test})
        line = {"class": "2 .5 .5 .1 .1", "words": "0 a b c d", "count": "0 .5 .5 .1"}
        (root / "labels" / "train" / "0.txt").write_text(line[what.split()[1]])
        return root
    root = boxes.coco(tmp_path / "c", {"train2017": train})
    file = root / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    if what == "unknown category":
        content["annotations"][0]["category_id"] = 4
    if what == "no images":
        del content["images"]
    file.write_text(json.dumps(content) if what != "not json" else "{")
    return file


MISTAKES = {
    "nowhere": "no such file",
    "no annotations": "has no annotations",
    "no objects": "none of its 3 pictures has an object",
    "yolo class": "class 2 is not among the 2",
    "yolo words": "are not numbers",
    "yolo count": "3 numbers",
    "unknown category": "category 4",
    "no images": "has no images",
    "not json": "is not JSON",
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_in_the_data_is_named(tmp_path, splits, what):
    with pytest.raises(ValueError, match="data") as told:
        open_annotated(str(wrong(tmp_path, *splits, what)))
    assert MISTAKES[what] in str(told.value)


def test_no_test_split_is_said(tmp_path, splits):
    root = boxes.coco(tmp_path, {"train2017": splits[0]})
    with pytest.raises(ValueError, match="instances_val"):
        open_annotated(str(root), split="test")


@pytest.mark.slow
def test_coco128_boxes_agree_between_its_json_and_its_yolo_files(tmp_path):
    shared = Path(os.environ.get("SACCADE_DATA", "")) / "coco128" / "coco128.tar"
    if not shared.is_file():
        pytest.skip("SACCADE_DATA has no coco128")
    import tarfile

    with tarfile.open(shared) as tar:
        tar.extractall(tmp_path, filter="data")
    root = tmp_path / "coco128"
    (root / "object_detection" / "images").symlink_to(root / "images")
    a = open_annotated(str(root), split="test")
    b = open_annotated(str(root / "object_detection"), split="test")
    assert len(a.objects) == len(b.objects) == 128
    assert a.count() == b.count() == 898
    by_name = {Path(b.pictures.name(i)).name: o for i, o in enumerate(b.objects)}
    for i, mine in enumerate(a.objects):
        other = by_name[a.pictures.name(i)]
        np.testing.assert_allclose(mine.boxes, other.boxes, atol=0.51)
        assert [a.classes[k] for k in mine.labels] == [b.classes[k] for k in other.labels]
    train = open_annotated(str(root))
    assert train.count() == 939
    assert sum(int(o.crowd.sum()) for o in train.objects) == 10
