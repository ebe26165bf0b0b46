import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from saccade.data import open_source
from saccade.data.shards import expand


def png(color):
    stream = io.BytesIO()
    Image.new("RGB", (6, 5), color).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def tars(tmp_path):
    """Three tars of 3, 1 and 2 pictures: picture k has the color (k, 2k, 7)."""
    k = 0
    for shard, count in enumerate((3, 1, 2)):
        members = []
        for _ in range(count):
            members.append((f"dir/{k:03d}.png", png((k, 2 * k, 7))))
            members.append((f"dir/{k:03d}.cls", str(k % 3).encode()))
            k += 1
        write_tar(tmp_path / f"x-{shard:02d}.tar", members)
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "paths"),
    [
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
        ("plain.tar", ["plain.tar"]),
    ],
)
def test_braces_are_spelled_out(spec, paths):
    assert expand(spec) == paths


@pytest.mark.parametrize("spec", ["x-{00..02}.tar", "x-*.tar", ""])
def test_local_tars_are_one_source(tars, spec):
    source = open_source(str(tars / spec))
    assert len(source) == 6
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert source.classes == ("0", "1", "2")
    assert source.name(3) == "x-01.tar/dir/003.png"
    for i in (5, 0, 3):
        assert source.read(i)[:, 4, 5].tolist() == [i, 2 * i, 7]


def test_labels_come_from_json_too_and_may_be_missing(tmp_path):
    members = [
        *(("a.png", png((1, 1, 1))), ("a.json", b'{"Label": "dog", "more": [1]}')),
        *(("b.png", png((2, 2, 2))), ("b.json", b"not json")),
        *(("c.png", png((3, 3, 3))), ("c.cls", b"cat\n")),
    ]
    write_tar(tmp_path / "x.tar", members)
    source = open_source(str(tmp_path / "x.tar"))
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [1, -1, 0]


def test_a_sample_has_one_picture_the_one_with_the_shortest_suffix(tmp_path):
    members = [
        *(("a.depth.png", png((1, 1, 1))), ("a.png", png((2, 2, 2)))),
        *(("b.txt", b"no picture"), ("d/c.png", png((3, 3, 3)))),
    ]
    write_tar(tmp_path / "x.tar", members)
    source = open_source(str(tmp_path / "x.tar"))
    assert [source.read(i)[0, 0, 0].item() for i in range(len(source))] == [2, 3]
    assert source.skipped == 1
    assert source.labels is None


def test_names_of_members_are_only_shown(tmp_path):
    outside = "../../outside/\x1b[31mred.png"
    write_tar(tmp_path / "x.tar", [(outside, png((9, 9, 9)))])
    with tarfile.open(tmp_path / "x.tar", "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    source = open_source(str(tmp_path / "x.tar"))
    assert len(source) == 1
    assert source.name(0) == "x.tar/../../outside/?[31mred.png"
    assert source.read(0)[0, 0, 0] == 9
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar"]


def test_a_tar_cut_off_is_named(tars):
    path = tars / "x-00.tar"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"x-00\.tar is no whole tar file"):
        open_source(str(tars))


def test_a_missing_shard_is_named(tars):
    with pytest.raises(ValueError, match=r"no file .*x-03\.tar; check the numbers"):
        open_source(str(tars / "x-{00..03}.tar"))


@pytest.mark.parametrize("data", ["pipe:cat x.tar", "s3://bucket/x.tar"])
def test_no_command_is_run_for_data(data):
    with pytest.raises(ValueError, match=r"nothing is run for data; give files or http"):
        open_source(data)


def test_a_tar_beside_pictures_is_not_the_data(tars):
    (tars / "cat").mkdir()
    (tars / "cat" / "1.png").write_bytes(png((1, 1, 1)))
    assert open_source(str(tars)).name(0) == "cat/1.png"


@pytest.fixture
def tables(tmp_path):
    """Hugging Face's layout: three training files and a test file, words as labels."""
    for name, colors in (
        ("train-0", (0, 1)),
        ("train-1", (2,)),
        ("train-2", (3, 4)),
        ("test", (5,)),
    ):
        rows = {"image": [{"bytes": png((c, 0, 0)), "path": None} for c in colors]}
        rows["label"] = ["ab"[c % 2] for c in colors]
        pq.write_table(pa.table(rows), tmp_path / f"{name}.parquet", row_group_size=1)
    return tmp_path


def test_a_folder_of_parquet_files_has_the_splits_of_its_names(tables):
    for split, colors in (("train", range(5)), ("test", [5])):
        source = open_source(str(tables), split=split)
        assert source.split == split
        assert [source.read(i)[0, 0, 0].item() for i in range(len(source))] == list(colors)
        assert [source.classes[k] for k in source.labels] == ["ab"[c % 2] for c in colors]
    assert open_source(str(tables / "train-*.parquet")).split == ""


def test_tables_share_what_they_keep(tables, monkeypatch):
    from saccade.data import table

    monkeypatch.setattr(table, "HELD_BYTES", 1)
    source = open_source(str(tables))
    for i in range(5):
        source.read(i)
    assert len(source.sources[0].groups.held) == 1
    assert source.sources[0].groups is source.sources[2].groups


def test_a_table_s_json_metadata_names_its_classes(tables):
    """As `datasets` writes it, read without that package."""
    path = tables / "train-0.parquet"
    rows = pq.read_table(path).set_column(1, "label", pa.array([1, 0]))
    info = {"info": {"features": {"label": {"names": ["dog", "cat"]}}}}
    pq.write_table(rows.replace_schema_metadata({"huggingface": json.dumps(info)}), path)
    source = open_source(str(path))
    assert (source.classes, source.labels.tolist()) == (("dog", "cat"), [1, 0])
    assert np.array_equal(source.read(1)[0].numpy(), np.ones((5, 6), dtype=np.uint8))
