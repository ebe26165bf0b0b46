import pytest

from saccade.data import open_source
from saccade.data.folder import numbered
from saccade.data.source import BadPicture


def names(source):
    return [source.name(i) for i in range(len(source))]


def test_flat_folder_is_walked_sorted_unlabeled_and_counts_other_files(tmp_path, save):
    save(tmp_path / "b" / "deep" / "2.PNG")
    save(tmp_path / "a.jpg")
    save(tmp_path / ".hidden.jpg")
    (tmp_path / "notes.txt").write_text("x")
    source = open_source(str(tmp_path))
    assert names(source) == ["a.jpg", "b/deep/2.PNG"]
    assert (source.labels, source.classes, source.split, source.skipped) == (None, (), "", 1)
    assert source.read(1).shape == (3, 6, 8)


def test_class_folders_give_labels(tmp_path, save):
    for name in ("cat/1.png", "cat/2.png", "ant/3.png"):
        save(tmp_path / name)
    source = open_source(str(tmp_path))
    assert source.classes == ("ant", "cat")
    assert source.labels.tolist() == [0, 1, 1]


def test_splits_share_the_classes_of_both(tmp_path, save):
    for name in ("train/a/1.png", "train/c/2.png", "val/b/3.png", "val/c/4.png"):
        save(tmp_path / name)
    train, test = (open_source(str(tmp_path), split=split) for split in ("train", "test"))
    assert train.classes == test.classes == ("a", "b", "c")
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 2], [1, 2])
    assert (train.split, test.split) == ("train", "test")
    assert names(test) == ["b/3.png", "c/4.png"]


def test_the_labeled_one_of_val_and_test_is_the_test_split(tmp_path, save):
    for name in ("train/a/1.png", "train/b/2.png", "test/3.png", "val/a/4.png", "val/b/5.png"):
        save(tmp_path / name)
    assert names(open_source(str(tmp_path), split="test")) == ["a/4.png", "b/5.png"]


def test_train_alone_has_no_test_split(tmp_path, save):
    save(tmp_path / "train" / "1.png")
    assert names(open_source(str(tmp_path))) == ["1.png"]
    with pytest.raises(ValueError, match="no test/ or val/ beside train/"):
        open_source(str(tmp_path), split="test")


def test_train_is_a_class_where_other_classes_stand_beside_it(tmp_path, save):
    for name in ("train/1.png", "bus/2.png"):
        save(tmp_path / name)
    assert open_source(str(tmp_path)).classes == ("bus", "train")


def test_a_directory_called_like_a_picture_is_listed_and_unreadable(tmp_path, save):
    for name in ("a/1.png", "b/2.png", "x.png/inner.png"):
        save(tmp_path / name)
    source = open_source(str(tmp_path))
    assert names(source) == ["a/1.png", "b/2.png", "x.png"]
    assert source.labels.tolist() == [0, 1, -1]
    with pytest.raises(BadPicture, match="is a directory"):
        source.read(2)


def test_links_that_lead_back_end(tmp_path, save):
    save(tmp_path / "a" / "1.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    assert names(open_source(str(tmp_path))) == ["a/1.png", "b/to_a/1.png"]


def test_dirty_folder_reads_all_but_the_broken(dirty_folder):
    folder, expected = dirty_folder
    source = open_source(str(folder))
    assert len(source) == 200
    found = {}
    for i in range(len(source)):
        try:
            assert source.read(i).shape[0] == 3
        except BadPicture as bad:
            found[bad.name] = bad.reason
    assert found.keys() == expected.keys()
    assert all(expected[name] in reason for name, reason in found.items())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "path,label\np/1.png,dog\np/2.png,cat\n"),
        ("b.csv", "label,ignored,File\ndog,7,p/1.png\ncat,7,p/2.png\n"),
        ("c.txt", "p/1.png,dog\n\np/2.png,cat\n"),
        ("d.tsv", "p/1.png\tdog\np/2.png\tcat\n"),
    ],
)
def test_lists_name_paths_and_labels(tmp_path, save, name, text):
    save(tmp_path / "p" / "1.png", (1, 1, 1))
    save(tmp_path / "p" / "2.png", (2, 2, 2))
    (tmp_path / name).write_text(text)
    source = open_source(str(tmp_path / name))
    assert names(source) == ["p/1.png", "p/2.png"]
    assert (source.classes, source.labels.tolist()) == (("cat", "dog"), [1, 0])
    assert [int(source.read(i).max()) for i in range(2)] == [1, 2]


def test_a_list_without_labels_and_with_numbers(tmp_path):
    (tmp_path / "plain.txt").write_text("1.png\n2.png\n")
    assert open_source(str(tmp_path / "plain.txt")).labels is None
    (tmp_path / "numbers.csv").write_text("1.png,10\n2.png,2\n")
    source = open_source(str(tmp_path / "numbers.csv"))
    assert source.labels.tolist() == [10, 2]
    assert source.classes[10] == "10"
    with pytest.raises(BadPicture, match="no such file"):
        source.read(0)


def test_a_list_with_some_labels_names_the_one_that_lacks_it(tmp_path):
    (tmp_path / "x.csv").write_text("1.png,a\n2.png\n")
    with pytest.raises(ValueError, match=r"2\.png has no label"):
        open_source(str(tmp_path / "x.csv"))


def test_numbers_too_large_for_classes_are_names():
    classes, labels = numbered(["99999999999", "7", "99999999999"])
    assert classes == ("7", "99999999999")
    assert labels.tolist() == [1, 0, 1]
