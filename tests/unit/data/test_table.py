import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from saccade.data import open_source, table
from saccade.data.source import BadPicture


def png(value):
    stream = io.BytesIO()
    Image.new("L", (2, 2), value).save(stream, "PNG")
    return stream.getvalue()


def values(source):
    return [int(source.read(i).max()) for i in range(len(source))]


def test_rows_keep_their_order_over_row_groups(tmp_path):
    rows = pa.table({"id": range(7), "image": [png(v) for v in range(7)], "label": list("babacab")})
    pq.write_table(rows, tmp_path / "x.parquet", row_group_size=3)
    source = open_source(str(tmp_path / "x.parquet"), channels=1)
    assert values(source) == list(range(7))
    assert source.read(3).max() == 3
    assert source.classes == ("a", "b", "c")
    assert source.labels.tolist() == [1, 0, 1, 0, 2, 0, 1]
    assert source.name(6) == "x.parquet[6]"


def test_the_layout_of_hugging_face_brings_class_names(tmp_path):
    images = [{"bytes": png(5), "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    meta = {"info": {"features": {"label": {"names": ["dog", "cat"], "_type": "ClassLabel"}}}}
    rows = pa.table({"image": images, "label": [1, 0]})
    rows = rows.replace_schema_metadata({"huggingface": json.dumps(meta)})
    pq.write_table(rows, tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"))
    assert (source.classes, source.labels.tolist()) == (("dog", "cat"), [1, 0])
    assert source.read(0).shape == (3, 2, 2)
    with pytest.raises(BadPicture, match="no bytes"):
        source.read(1)


def test_memory_holds_few_row_groups_and_rereads_the_others(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    noise = [Image.fromarray(random.integers(0, 256, (20, 20), dtype=np.uint8)) for _ in range(6)]
    streams = [io.BytesIO() for _ in noise]
    for picture, stream in zip(noise, streams, strict=True):
        picture.save(stream, "PNG")
    rows = pa.table({"image": [stream.getvalue() for stream in streams]})
    pq.write_table(rows, tmp_path / "x.parquet", row_group_size=1)
    monkeypatch.setattr(table, "HELD_BYTES", 2 * len(streams[0].getvalue()) + 100)
    source = open_source(str(tmp_path / "x.parquet"), channels=1)
    for i in (0, 1, 2, 3, 4, 5, 0):
        assert np.array_equal(source.read(i)[0].numpy(), np.array(noise[i]))
        assert len(source.groups.held) <= 2


def test_tables_that_hold_no_pictures_or_are_none_say_so(tmp_path):
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"no column of encoded pictures among \['a', 'b'\]"):
        open_source(str(tmp_path / "x.parquet"))
    (tmp_path / "y.parquet").write_text("words")
    with pytest.raises(ValueError, match="not a parquet file"):
        open_source(str(tmp_path / "y.parquet"))


def test_an_empty_label_is_refused(tmp_path):
    rows = pa.table({"image": [png(1), png(2)], "label": [1, None]})
    pq.write_table(rows, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="column label has 1 empty cells"):
        open_source(str(tmp_path / "x.parquet"))
