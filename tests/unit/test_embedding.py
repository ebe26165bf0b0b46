import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from saccade.core import Backbone
from saccade.data.source import BadPicture, Source
from saccade.embedding import embed, metadata, search
from saccade.evals import Preprocess, extract
from saccade.recipe import Normalize

WHOLE = Preprocess(size=8, resize=8, normalize=Normalize())


class Toy(Source):
    channels, split, skipped = 3, "", 0

    def __init__(self, n=9, bad=(), labels=None):
        self.x = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8)
        self.bad = bad
        self.labels = labels
        self.classes = ("cat", "dog") if labels is not None else ()

    def __len__(self):
        return len(self.x)

    def stored(self, i):
        if i in self.bad:
            raise BadPicture(self.name(i), "cut short")
        return self.x[i]

    def name(self, i):
        return f"{i}.png"


class Net(Backbone):
    dim, channels, image_size = 5, 3, 8

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Conv2d(3, 5, 8)

    def features(self, x):
        return self.body(x)

    def forward(self, x):
        return self.features(x).flatten(1)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def test_the_file_holds_what_the_network_says(net, tmp_path):
    labels = np.array([0, 1, -1, 0, 1, 0, 1, 0, 1])
    source = Toy(bad=(3,), labels=labels)
    done = embed(net, source, WHOLE, tmp_path / "deep" / "v.parquet", batch_size=4)
    table = pq.read_table(done.path)
    features = extract(net, source, WHOLE)
    assert table["index"].to_pylist() == features.index.tolist() == [0, 1, 2, 4, 5, 6, 7, 8]
    assert table["path"].to_pylist()[:3] == ["0.png", "1.png", "2.png"]
    assert table["label"].to_pylist()[:4] == ["cat", "dog", None, "dog"]
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 5)
    assert np.allclose(np.array(table["vector"].to_pylist()), features.x.numpy(), atol=1e-6)
    assert (done.rows, done.dim, done.skipped) == (8, 5, 1)
    assert [p.name for p in done.path.parent.iterdir()] == ["v.parquet"]


def test_the_file_says_where_it_comes_from(net, tmp_path):
    path = tmp_path / "v.parquet"
    embed(net, Toy(bad=(0,)), WHOLE, path, name="mine")
    said = metadata(path)
    assert (said["model"], said["pictures"], said["skipped"]) == ("mine", 8, 1)
    assert said["preprocess"]["size"] == 8
    first = said["weights"]
    with torch.no_grad():
        net.body.bias.add_(1)
    embed(net, Toy(), WHOLE, path)
    assert metadata(path)["weights"] != first


def test_without_labels_the_column_is_empty(net, tmp_path):
    path = embed(net, Toy(), WHOLE, tmp_path / "v.parquet").path
    assert pq.read_table(path)["label"].null_count == 9


def test_nothing_readable_leaves_no_file(net, tmp_path):
    with pytest.raises(ValueError, match="none of 2 pictures could be read"):
        embed(net, Toy(2, bad=(0, 1)), WHOLE, tmp_path / "v.parquet")
    assert list(tmp_path.iterdir()) == []


def test_another_parquet_file_is_refused(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="not written by `saccade embed`"):
        metadata(tmp_path / "other.parquet")


def test_search_ranks_all_rows_by_cosine(net, tmp_path):
    path = embed(net, Toy(30), WHOLE, tmp_path / "v.parquet", batch_size=7).path
    rows = np.array(pq.read_table(path)["vector"].to_pylist())
    query = np.arange(5.0) - 2
    cosine = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
    found = search(path, query, 6)
    assert [r["index"] for r in found] == np.argsort(-cosine)[:6].tolist()
    assert [r["cosine"] for r in found] == pytest.approx(np.sort(-cosine)[:6] * -1, abs=1e-5)
    assert json.dumps(found)


def test_a_row_is_not_its_own_neighbor(net, tmp_path):
    source = Toy(12)
    source.x[7] = source.x[2]
    path = embed(net, source, WHOLE, tmp_path / "v.parquet", batch_size=5).path
    found = search(path, "2.png", 3)
    assert len(found) == 3
    assert found[0]["path"] == "7.png"
    assert found[0]["cosine"] == pytest.approx(1, abs=1e-5)
    assert "2.png" not in [r["path"] for r in found]


@pytest.mark.parametrize(
    ("query", "top", "message"),
    [
        ("x.png", 3, "query 'x.png' is not among the paths"),
        (np.ones(4), 3, "query has 4 numbers, the file's vectors 5"),
        (np.ones(5), 0, "setting top: 0 is too few"),
    ],
)
def test_a_query_that_cannot_be_answered_is_explained(net, tmp_path, query, top, message):
    path = embed(net, Toy(3), WHOLE, tmp_path / "v.parquet").path
    with pytest.raises(ValueError, match=message):
        search(path, query, top)
