import http.server
import io
import itertools
import json
import tarfile
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.core import View
from saccade.data import open_source, stream
from saccade.data.stream import Shards, Stream, StreamLoader, open_stream, plan
from saccade.errors import RunError
from saccade.recipe import Normalize

PLAIN = View(count=2, size=8, jitter=0.0, grayscale=0.0, blur=0.0)
RAW = Normalize(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
COUNTS = (10, 7, 13)  # pictures of three tars


def png(k):
    """A picture whose color tells its number."""
    data = io.BytesIO()
    Image.new("RGB", (6, 5), (k, 255 - k, 7)).save(data, "PNG")
    return data.getvalue()


def number(image):
    """The number of a picture from its color."""
    return round(float(image[0].mean()) * 255)


class Listed(Shards):
    """Shards in memory that write down what is read of them."""

    def __init__(self, counts, broken=()):
        self.names = [f"shard {s}" for s in range(len(counts))]
        ends = np.cumsum([0, *counts]).tolist()
        self.numbers = [range(a, b) for a, b in itertools.pairwise(ends)]
        self.broken = broken
        self.read_of = dict.fromkeys(range(len(counts)), 0)
        self.lock = threading.Lock()

    def read(self, shard):
        for i in self.numbers[shard]:
            with self.lock:
                self.read_of[shard] += 1
            yield f"{shard}/{i}", b"torn" if i in self.broken else png(i)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Three tars behind a URL; `cut` says after how many bytes an answer breaks off, each once."""
    monkeypatch.setenv("SACCADE_DATASETS", str(tmp_path / "home"))
    monkeypatch.setattr(stream, "PAUSE", 0.0)
    served, k = {}, 0
    for shard, count in enumerate(COUNTS):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            for _ in range(count):
                for name, content in ((f"{k:03d}.png", png(k)), (f"{k:03d}.cls", b"1")):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                k += 1
        served[f"/x-{shard}.tar"] = data.getvalue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            data = served[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: self.server.cut.pop() if self.server.cut else None])

        def log_message(self, format, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.cut, httpd.served = [], served
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        httpd.data = f"http://127.0.0.1:{httpd.server_port}/x-{{0..2}}.tar"
        yield httpd
        httpd.shutdown()
        thread.join()


def loader(source, **options):
    options = {"batch_size": 4, "seed": 3, "window": 8} | options
    return StreamLoader(source, (PLAIN,), RAW, **options)


def listed(counts=COUNTS, **options):
    return Stream(Listed(counts, **options), list(counts), 3)


def assert_equal(a, b):
    for x, y in zip(a.images, b.images, strict=True):
        assert torch.equal(x, y)
    assert torch.equal(a.index, b.index)


def test_three_shards_two_ranks_of_two_threads_each_picture_once(server):
    """30 pictures in batches of 6: nothing is left over."""
    one = list(loader(open_stream(server.data, 3), batch_size=6, threads=1).batches(1))
    ranks = [
        loader(open_stream(server.data, 3), batch_size=6, rank=r, world=2, threads=2)
        for r in range(2)
    ]
    halves = [list(rank.batches(1)) for rank in ranks]
    assert [len(h) for h in halves] == [5, 5] == [rank.steps for rank in ranks]
    seen = torch.cat([batch.index for half in halves for batch in half])
    assert seen.sort().values.tolist() == list(range(30))
    for half in halves:
        for batch in half:
            assert [number(x) for x in batch.images[1]] == batch.index.tolist()
    for whole, a, b in zip(one, *halves, strict=True):
        assert torch.equal(whole.index, torch.cat([a.index, b.index]))
        for v in range(2):
            assert torch.equal(whole.images[v], torch.cat([a.images[v], b.images[v]]))


@pytest.mark.parametrize("start", [1, 3, 4])
def test_a_resumed_epoch_has_exactly_the_rest(start):
    whole = list(loader(listed(), batch_size=6).batches(2))
    rest = list(loader(listed(), batch_size=6).batches(2, start))
    assert len(rest) == 5 - start
    for a, b in zip(whole[start:], rest, strict=True):
        assert_equal(a, b)


def test_every_epoch_has_its_own_order_and_what_is_left_over_changes():
    it = loader(listed(), batch_size=8)
    epochs = [torch.cat([batch.index for batch in it.batches(e)]) for e in range(6)]
    assert all(len(e) == len(e.unique()) == 24 for e in epochs)
    assert len({tuple(e.tolist()) for e in epochs}) == 6
    assert len(torch.cat(epochs).unique()) == 30


def test_a_picture_moves_at_most_by_the_window():
    """The plan against its rule: in a lane, place p sorts to within the window of p."""
    counts = torch.tensor([50, 30, 20, 60])
    made = plan(counts, batch_size=8, window=40, seed=1, epoch=0)
    lanes, rows = made.lanes, made.order.view(20, 4, 2).transpose(0, 1).flatten(1)
    assert made.order.sort().values.tolist() == list(range(160))
    moved = []
    for lane, shuffled in zip(lanes.tolist(), rows.tolist(), strict=True):
        assert sorted(lane) == sorted(shuffled)
        moved += [abs(lane.index(i) - place) for place, i in enumerate(shuffled)]
    assert 5 < max(moved) <= 40 / 4
    starts = [s for s in (0, 50, 80, 100) if (lanes == s).any()]
    order = sorted(starts, key=lambda s: lanes.flatten().tolist().index(s))
    assert len(starts) == 4
    assert order != [0, 50, 80, 100]  # the shards are shuffled too
    unmixed = plan(counts, batch_size=8, window=1, seed=1, epoch=0)
    assert torch.equal(unmixed.order.view(20, 4, 2).transpose(0, 1).flatten(1), unmixed.lanes)


def test_a_rank_reads_only_the_shards_of_its_lanes():
    counts = (8, 8, 8, 8)
    sources = [listed(counts) for _ in range(2)]
    for rank, source in enumerate(sources):
        list(loader(source, batch_size=4, rank=rank, world=2).batches(0))
    read = np.array([list(source.shards.read_of.values()) for source in sources])
    assert read.sum(0).tolist() == [8, 8, 8, 8]
    assert sorted(read[0].tolist()) == [0, 0, 8, 8]


def test_a_resumed_run_skips_whole_shards():
    source = listed((10, 10, 10, 10))
    list(loader(source, batch_size=1, window=1).batches(0, start=25))
    assert sorted(source.shards.read_of.values()) == [0, 0, 10, 10]


def test_few_pictures_are_held():
    source = listed((40, 40))
    it = loader(source, batch_size=4, window=8, threads=2)
    most = 0
    for _ in it.batches(0):
        most = max(most, sum(len(lane.window) for lane in source.lanes))
    assert 0 < most <= 8 + 4 * 6  # the window, and batches under way


def test_a_broken_connection_is_opened_again(server):
    want = list(loader(open_stream(server.data, 3), threads=1).batches(0))
    for cut in (0, 700, 5000, 20000):  # in the first header, a picture, a later one, the padding
        server.cut = [cut]
        for a, b in zip(want, loader(open_stream(server.data, 3)).batches(0), strict=True):
            assert_equal(a, b)


def test_a_connection_that_stays_broken_ends_the_run(server):
    source = open_stream(server.data, 3)
    server.cut = [2000] * 30
    with pytest.raises(RunError, match=r"x-\d\.tar cannot be read on"):
        list(loader(source, threads=1).batches(0))


def test_shards_are_counted_once_and_counted_upon(server, tmp_path):
    open_stream(server.data, 3)
    kept = list((tmp_path / "home" / "counts").glob("*.json"))
    assert json.loads(kept[0].read_text())["counts"] == list(COUNTS)
    short = server.served["/x-0.tar"]
    server.served["/x-2.tar"] = short  # 10 pictures instead of 13
    source = open_stream(server.data, 3)
    assert len(source) == 30
    with pytest.raises(RunError, match=r"x-2\.tar has 10 pictures where it had 13; remove .*json"):
        list(loader(source, batch_size=6).batches(0))
    kept[0].unlink()
    assert len(open_stream(server.data, 3)) == 27


@pytest.mark.parametrize("threads", [1, 3])
def test_an_unreadable_picture_is_replaced_alike_on_every_rank(threads):
    broken = (4, 11, 12, 28)
    one = loader(listed(broken=broken), batch_size=6)
    whole = list(one.batches(0))
    assert set(one.bad) == set(broken)
    halves = [
        loader(listed(broken=broken), batch_size=6, rank=r, world=2, threads=threads).batches(0)
        for r in range(2)
    ]
    for a, b, c in zip(whole, *halves, strict=True):
        assert torch.equal(a.index, torch.cat([b.index, c.index]))
        assert [number(x) for x in a.images[0]] == a.index.tolist()
        assert not set(broken) & set(a.index.tolist())
    rest = list(loader(listed(broken=broken), batch_size=6).batches(0, 2))
    for a, b in zip(whole[2:], rest, strict=True):
        assert_equal(a, b)


def test_a_compressed_tar_is_a_stream(server, tmp_path):
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for k in range(5):
            info = tarfile.TarInfo(f"{k}.png")
            info.size = len(png(k))
            tar.addfile(info, io.BytesIO(png(k)))
    source = open_stream(str(path), 3)
    assert source.counts.tolist() == [5]
    assert source.name(3) == f"{path}[3]"
    (batch,) = loader(source, batch_size=5).batches(0)
    assert sorted(number(x) for x in batch.images[0]) == list(range(5))


def test_local_tars_may_be_read_in_order(server, tmp_path):
    for name, data in server.served.items():
        (tmp_path / name[1:]).write_bytes(data)
    local = open_stream(f"stream:{tmp_path}/x-{{0..2}}.tar", 3)
    remote = open_stream(server.data, 3)
    for a, b in zip(loader(local).batches(0), loader(remote).batches(0), strict=True):
        assert_equal(a, b)


def test_a_streamed_dataset_has_its_pictures_once(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("SACCADE_DATASETS", str(tmp_path / "home"))
    datasets.disable_progress_bars()
    cells = [{"bytes": png(k), "path": None} for k in range(12)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"image": cells, "label": [0] * 12}, features=features)
    rows.save_to_disk(str(tmp_path / "saved"), num_shards=3)
    source = open_stream(f"stream:hf:{tmp_path / 'saved'}", 3)
    assert source.counts.tolist() == [4, 4, 4]
    batches = list(loader(source, batch_size=6).batches(0))
    assert torch.cat([b.index for b in batches]).sort().values.tolist() == list(range(12))
    for batch in batches:
        assert [number(x) for x in batch.images[0]] == batch.index.tolist()


@pytest.mark.parametrize("data", ["http://x.org/a.tar", "a.tar.gz", "stream:a.tar"])
def test_only_training_reads_a_stream(data):
    with pytest.raises(ValueError, match="is a stream, which can only be trained on"):
        open_source(data)


def test_what_is_no_stream_is_refused(tmp_path):
    (tmp_path / "a.zip").touch()
    with pytest.raises(ValueError, match=r"a\.zip is no stream; give \.tar files"):
        open_stream(f"stream:{tmp_path / 'a.zip'}", 3)


def test_a_window_of_nothing_is_refused():
    with pytest.raises(ValueError, match="setting shuffle=0 is too small"):
        loader(listed(), window=0)
