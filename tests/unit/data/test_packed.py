import io
import json
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from saccade.data import BadPicture, open_source, packing
from saccade.data.packed import ROW, rows_of
from saccade.data.packing import pack
from saccade.recipe import Cache


def cache(folder, **settings):
    return Cache(folder=str(folder), **settings)


def files(folder):
    """Every file of a pack with its bytes."""
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def unfinished(folder):
    """The pack as before its last moment."""
    header = json.loads((folder / "pack.json").read_text())
    (folder / "pack.json").write_text(json.dumps({**header, "finished": False}, indent=2) + "\n")


def opened(folder, **options):
    """The pack as a source, though it be unfinished."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_source(str(folder), **options)


@pytest.fixture
def arrays(tmp_path):
    """40 training and 10 test pictures with labels, and the path of their npz file."""
    g = np.random.default_rng(0)
    x = g.integers(0, 256, (50, 9, 7, 3), dtype=np.uint8)
    y = np.arange(50, dtype=np.uint8) % 4
    np.savez(tmp_path / "a.npz", x=x[:40], y=y[:40], xt=x[40:], yt=y[40:])
    return x, y, str(tmp_path / "a.npz")


@pytest.fixture
def photos(tmp_path):
    """Two classes of smooth JPEGs and PNGs, 90 to 120 pixels high, 150 wide."""
    g = np.random.default_rng(0)
    for i in range(8):
        coarse = Image.fromarray(g.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.{('jpg', 'png')[i > 4]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((150, 90 + 10 * (i % 4)), Image.Resampling.BICUBIC).save(path)
    return tmp_path / "photos"


def test_small_pictures_come_back_bit_by_bit_in_both_splits(arrays, tmp_path):
    x, y, data = arrays
    report = pack(data, cache(tmp_path / "p"), threads=2, shard_bytes=1000)
    assert report.pictures == 50
    assert not report.unreadable
    for split, part in (("train", slice(0, 40)), ("test", slice(40, 50))):
        source = open_source(str(tmp_path / "p"), split=split)
        assert source.split == split
        assert source.classes == tuple("0123")
        assert source.labels.tolist() == y[part].tolist()
        for i, want in enumerate(x[part]):
            assert np.array_equal(source.read(i).permute(1, 2, 0).numpy(), want)
        assert source.name(3) == f"a/{split}[3]"
    sizes = [p.stat().st_size for p in (tmp_path / "p" / "train").glob("*.bin")]
    assert len(sizes) == 8
    assert max(sizes) < 1000 + 9 * 7 * 3 + 20  # one record more than the limit


def test_size_0_copies_the_bytes_of_files(photos, tmp_path):
    pack(str(photos), cache(tmp_path / "p"))
    before, after = open_source(str(photos)), open_source(str(tmp_path / "p"))
    assert after.classes == ("a", "b")
    assert after.labels.tolist() == before.labels.tolist()
    for i in range(8):
        assert after.name(i) == before.name(i)
        assert after.stored(i) == (photos / before.name(i)).read_bytes()


def test_a_size_shortens_the_short_side_and_never_enlarges(photos, tmp_path):
    pack(str(photos), cache(tmp_path / "p", size=100, quality=98))
    after = open_source(str(tmp_path / "p"))
    for i in range(8):
        path = photos / after.name(i)
        picture = Image.open(path).convert("RGB")
        assert after.size(i) == (picture.height, picture.width)
        if picture.height <= 100:
            assert path.suffix == ".png" or after.stored(i) == path.read_bytes()
        else:
            side = (int(150 * 100 / picture.height), 100)
            picture = picture.resize(side, Image.Resampling.BICUBIC)
        got = after.read(i).permute(1, 2, 0).numpy().astype(int)
        assert got.shape == (picture.height, picture.width, 3)
        assert np.abs(got - np.array(picture)).mean() < 2


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (4, "RGBA")])
def test_other_channels_are_kept(photos, tmp_path, channels, mode):
    pack(str(photos), cache(tmp_path / "p", size=48), channels=channels)
    after = open_source(str(tmp_path / "p"), channels=channels)
    want = Image.open(photos / after.name(0)).convert(mode)
    want = np.array(want.resize((80, 48), Image.Resampling.BICUBIC)).reshape(48, 80, channels)
    got = after.read(0).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(got - want).mean() < 1


def test_a_format_is_obeyed(photos, tmp_path):
    pack(str(photos), cache(tmp_path / "raw", format="raw"))
    pack(str(photos), cache(tmp_path / "jpeg", format="jpeg"))
    raw, jpeg = open_source(str(tmp_path / "raw")), open_source(str(tmp_path / "jpeg"))
    for i in range(8):
        assert np.array_equal(raw.read(i).numpy(), open_source(str(photos)).read(i).numpy())
        assert Image.open(io.BytesIO(jpeg.stored(i))).format == "JPEG"


def test_pictures_of_many_bits_and_channels_are_packed_as_they_are(tmp_path):
    x = np.random.default_rng(0).normal(size=(3, 8, 9, 5)).astype(np.float32)
    (tmp_path / "maps").mkdir()
    for i in range(3):
        np.save(tmp_path / "maps" / f"{i}.npy", x[i])
    data = str(tmp_path / "maps")
    pack(data, cache(tmp_path / "p"), channels=5)
    after = open_source(str(tmp_path / "p"), channels=5)
    for i in range(3):
        assert np.array_equal(after.read(i).permute(1, 2, 0).numpy(), x[i])
    with pytest.raises(ValueError, match="other than 8 bits are packed as they are; use size 0"):
        pack(data, cache(tmp_path / "q", size=4), channels=5)


def test_unreadable_pictures_are_left_out_and_listed(dirty_folder, tmp_path):
    folder, bad = dirty_folder
    report = pack(str(folder), cache(tmp_path / "p"))
    assert {one.name for one in report.unreadable} == bad.keys()
    assert all(bad[one.name] in one.reason for one in report.unreadable)
    before, after = open_source(str(folder)), open_source(str(tmp_path / "p"))
    assert len(after) == len(before) - len(bad)
    good = [i for i in range(len(before)) if before.name(i) not in bad]
    for i, k in enumerate(good):
        assert after.name(i) == before.name(k)
        assert np.array_equal(after.read(i).numpy(), before.read(k).numpy())


def test_a_flipped_byte_of_a_picture_is_named(arrays, tmp_path):
    pack(arrays[2], cache(tmp_path / "p"))
    path = tmp_path / "p" / "train" / "00000.bin"
    data = bytearray(path.read_bytes())
    data[int(rows_of(path.with_suffix(".index"))[17]["offset"]) + 50] ^= 1
    path.write_bytes(data)
    source = open_source(str(tmp_path / "p"))
    with pytest.raises(BadPicture, match=r"a/train\[17\]: damaged: record 17 of .*00000\.bin"):
        source.read(17)
    assert np.array_equal(source.read(18).permute(1, 2, 0).numpy(), arrays[0][18])


def test_a_flipped_byte_of_an_index_is_named(arrays, tmp_path):
    pack(arrays[2], cache(tmp_path / "p"))
    path = tmp_path / "p" / "train" / "00000.index"
    data = bytearray(path.read_bytes())
    data[5 * ROW.itemsize + ROW.fields["label"][1]] ^= 1  # the label of picture 5
    path.write_bytes(data)
    source = open_source(str(tmp_path / "p"))
    assert len(source) == 39
    assert [source.name(i) for i in (4, 5)] == ["a/train[4]", "a/train[6]"]
    assert [one.name for one in source.bad] == ["00000.bin[5]"]


@pytest.mark.parametrize(
    ("rows", "cut", "ahead"), [(0, 0, 0), (0, 1, 20), (3, ROW.itemsize - 1, 0), (6, 0, 20)]
)
def test_a_pack_cut_anywhere_is_completed_to_the_same_bytes(arrays, tmp_path, rows, cut, ahead):
    """Left of the last shard: whole rows, bytes of a row, bytes of records without a row."""
    pack(arrays[2], cache(tmp_path / "p"), shard_bytes=1300)
    whole = files(tmp_path / "p")
    unfinished(tmp_path / "p")
    folder = tmp_path / "p" / "train"
    last = sorted(folder.glob("*.index"))[2]
    for path in folder.glob("*"):
        if path.stem > last.stem:
            path.unlink()
    table = rows_of(last)
    end = int(table[rows - 1]["offset"] + table[rows - 1]["size"]) if rows else 0
    data = whole[last.relative_to(tmp_path / "p")]
    last.write_bytes(data[: rows * ROW.itemsize + cut])
    shard = last.with_suffix(".bin")
    shard.write_bytes(shard.read_bytes()[: end + ahead])
    assert len(opened(tmp_path / "p")) == 2 * 7 + rows
    pack(arrays[2], cache(tmp_path / "p"), shard_bytes=1300)
    assert files(tmp_path / "p") == whole


def test_a_pack_is_readable_while_it_is_written(arrays, tmp_path, monkeypatch):
    seen = []
    add = packing._Writer.add

    def looking(self, record):
        add(self, record)
        if self.folder.name == "train":
            source = opened(tmp_path / "p")
            last = source.read(len(source) - 1).permute(1, 2, 0).numpy()
            seen.append((len(source), np.array_equal(last, arrays[0][len(source) - 1])))

    monkeypatch.setattr(packing._Writer, "add", looking)
    pack(arrays[2], cache(tmp_path / "p"))
    assert seen == [(n, True) for n in range(1, 41)]


def test_an_unfinished_pack_says_so(arrays, tmp_path):
    pack(arrays[2], cache(tmp_path / "p"))
    unfinished(tmp_path / "p")
    with pytest.warns(UserWarning, match="not finished: 40 of 40 pictures"):
        open_source(str(tmp_path / "p"))


def test_a_finished_pack_is_used_again_without_writing(arrays, tmp_path, monkeypatch):
    pack(arrays[2], cache(tmp_path / "p"))
    monkeypatch.setattr(packing, "_write_split", None)
    assert pack(arrays[2], cache(tmp_path / "p")).pictures == 50


def test_of_two_writers_one_writes_and_both_find_the_pack(arrays, tmp_path):
    reports = []
    writers = [
        threading.Thread(target=lambda: reports.append(pack(arrays[2], cache(tmp_path / "p"))))
        for _ in range(2)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    pack(arrays[2], cache(tmp_path / "alone"))
    assert [r.pictures for r in reports] == [50, 50]
    assert files(tmp_path / "p") == files(tmp_path / "alone")


def test_a_pack_of_other_pictures_or_settings_is_refused(arrays, photos, tmp_path):
    pack(arrays[2], cache(tmp_path / "p"))
    with pytest.raises(ValueError, match=r"packed with size=0, not 32; choose another folder"):
        pack(arrays[2], cache(tmp_path / "p", size=32))
    with pytest.raises(ValueError, match=r"packed with channels=3, not 1"):
        pack(arrays[2], cache(tmp_path / "p"), channels=1)
    with pytest.raises(ValueError, match=r"packed from other pictures \(.*a\.npz\) than .*photos"):
        pack(str(photos), cache(tmp_path / "p"))
    with np.load(arrays[2]) as old:
        np.savez(arrays[2], **{**old, "x": old["x"][::-1]})  # other content, same names and labels
    with pytest.raises(ValueError, match="packed from other pictures"):
        pack(arrays[2], cache(tmp_path / "p"))


def test_nothing_is_written_into_a_folder_of_something_else(arrays, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match=r"mine is not empty and no pack"):
        pack(arrays[2], cache(tmp_path / "mine"))
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("settings", "channels", "says"),
    [
        ({"size": -1}, 3, "size=-1 is negative"),
        ({"quality": 0}, 3, "quality=0 is no JPEG quality"),
        ({"format": "jpeg"}, 4, "format=jpeg has no 4 channels"),
    ],
)
def test_settings_that_cannot_be_are_named(arrays, tmp_path, settings, channels, says):
    with pytest.raises(ValueError, match=says):
        pack(arrays[2], cache(tmp_path / "p", **settings), channels=channels)
    assert not (tmp_path / "p").exists()


SLOWLY = """
import sys, time
from saccade.data import packing
from saccade.recipe import Cache
record = packing._record
packing._record = lambda *args: (time.sleep(0.005), record(*args))[1]
packing.pack(sys.argv[1], Cache(folder=sys.argv[2]))
"""


@pytest.mark.slow
def test_a_killed_pack_is_completed(arrays, tmp_path):
    pack(arrays[2], cache(tmp_path / "whole"))
    writer = subprocess.Popen([sys.executable, "-c", SLOWLY, arrays[2], str(tmp_path / "p")])
    index = tmp_path / "p" / "train" / "00000.index"
    while not index.is_file() or index.stat().st_size < 5 * ROW.itemsize:
        assert writer.poll() is None
        time.sleep(0.002)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert 5 <= len(opened(tmp_path / "p")) < 40
    pack(arrays[2], cache(tmp_path / "p"))
    assert files(tmp_path / "p") == files(tmp_path / "whole")


def test_settings_of_a_cache_are_all_in_the_header(arrays, tmp_path):
    chosen = cache(tmp_path / "p", size=5, format="raw", quality=80)
    pack(arrays[2], chosen)
    header = json.loads((tmp_path / "p" / "pack.json").read_text())
    expected = {k: v for k, v in asdict(chosen).items() if k != "folder"}
    assert header["settings"] == {**expected, "channels": 3}
