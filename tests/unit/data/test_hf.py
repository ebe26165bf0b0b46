import io

import pytest
from PIL import Image

from saccade.data import open_source

datasets = pytest.importorskip("datasets")


def png(color):
    stream = io.BytesIO()
    Image.new("RGB", (6, 5), color).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def saved(tmp_path):
    """A dataset with two splits, saved; picture k has the red k."""
    features = {"picture": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])}

    def rows(colors):
        cells = [{"bytes": png((c, 0, 0)), "path": None} for c in colors]
        columns = {"picture": cells, "label": [c % 2 for c in colors]}
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))

    datasets.disable_progress_bars()
    both = datasets.DatasetDict({"train": rows(range(7)), "validation": rows([8, 9])})
    both.save_to_disk(str(tmp_path / "saved"), num_shards={"train": 3, "validation": 1})
    return tmp_path / "saved"


def test_a_dataset_of_hugging_face_is_read_at_random(saved):
    train = open_source(f"hf:{saved}")
    assert train.split == "train"
    assert train.classes == ("dog", "cat")
    assert train.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert [train.read(i)[0, 0, 0].item() for i in (6, 0)] == [6, 0]
    assert train.name(6) == "saved/train[6]"
    test = open_source(f"hf:{saved}", split="test")
    assert test.split == "test"
    assert [test.read(i)[0, 0, 0].item() for i in range(2)] == [8, 9]
    named = open_source(f"hf:{saved}:validation")
    assert (len(named), named.split) == (2, "")


def test_a_split_that_is_not_there_is_named(saved):
    with pytest.raises(ValueError, match=r"no split 'tset', only train, validation"):
        open_source(f"hf:{saved}:tset")


def test_words_as_labels_and_no_pictures(tmp_path):
    rows = {"image": [{"bytes": png((1, 1, 1)), "path": None}] * 3, "label": ["b", "a", "b"]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "a"))
    source = open_source(f"hf:{tmp_path / 'a'}")
    assert (source.classes, source.labels.tolist()) == (("a", "b"), [1, 0, 1])
    datasets.Dataset.from_dict({"text": ["x"]}).save_to_disk(str(tmp_path / "b"))
    with pytest.raises(ValueError, match=r"no column of pictures among \['text'\]"):
        open_source(f"hf:{tmp_path / 'b'}")
