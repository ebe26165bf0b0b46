import json

import numpy as np
import pytest
import torch

from saccade.data import open_source
from saccade.data.bad import Bad, write_bad
from saccade.data.memory import in_memory


def test_the_broken_are_dropped_and_the_rest_is_equal(dirty_folder):
    folder, expected = dirty_folder
    source = open_source(str(folder))
    kept, bad = in_memory(source, budget=1 << 30, threads=3)
    assert {one.name for one in bad} == expected.keys()
    assert all(expected[one.name] in one.reason for one in bad)
    assert len(kept) == 192
    where = {source.name(i): i for i in range(len(source))}
    for i in (0, 50, 191):
        assert torch.equal(kept.read(i), source.read(where[kept.name(i)]))


def test_labels_go_with_their_pictures(tmp_path, save):
    for name, value in (("a/1.png", 1), ("b/2.png", 2), ("b/3.png", 3)):
        save(tmp_path / name, (value,) * 3)
    (tmp_path / "a" / "0.png").touch()
    kept, bad = in_memory(open_source(str(tmp_path)), budget=1 << 20, threads=2)
    assert kept.labels.tolist() == [0, 1, 1]
    assert [int(kept.read(i).max()) for i in range(3)] == [1, 2, 3]
    assert bad == [Bad("a/0.png", "empty file")]


def test_over_the_budget_pictures_are_checked_but_not_held(dirty_folder):
    source = open_source(str(dirty_folder[0]))
    seen = []
    kept, bad = in_memory(source, budget=100_000, threads=2, progress=lambda *p: seen.append(p))
    assert sum(x.nbytes for x in kept.held) <= 100_000
    assert 0 < len(kept.held) < len(kept) == 192
    assert len(bad) == 8
    assert torch.equal(kept.read(191), source.read(int(kept.rows[191])))
    assert seen == [(i, 200) for i in range(1, 201)]


def test_large_sets_over_the_budget_are_left_lazy(noise, monkeypatch):
    monkeypatch.setattr("saccade.data.memory.VERIFY", 10)
    seen = []
    source = noise(50)
    source.resident = False
    kept, bad = in_memory(source, budget=5 * 3072, threads=2, progress=lambda *p: seen.append(p))
    assert (len(kept), len(kept.held), bad) == (50, 5, [])
    assert len(seen) == 6
    assert kept.labels.tolist() == [i % 5 for i in range(50)]


def test_what_is_in_memory_is_not_copied(noise):
    source = noise(5)
    kept, bad = in_memory(source, budget=1, threads=1)
    assert kept is source
    assert bad == []


def test_nothing_readable_is_an_error_with_an_example(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"none of 1 pictures can be read, such as a\.png: empty"):
        in_memory(open_source(str(tmp_path)), budget=1, threads=1)


def test_bad_files_are_written_sorted_once_each_and_leave_nothing_beside(tmp_path):
    path = tmp_path / "bad_files.jsonl"
    path.write_text("old")
    write_bad(path, [Bad("z", "late"), Bad("a", 'say "no"'), Bad("z", "late")])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"name": "a", "reason": 'say "no"'}, {"name": "z", "reason": "late"}]
    assert [p.name for p in tmp_path.iterdir()] == ["bad_files.jsonl"]


def test_subsets_follow_their_rows(noise):
    from saccade.data.source import Subset

    source = noise(6)
    part = Subset(source, np.array([4, 1]))
    assert part.labels.tolist() == [4, 1]
    assert torch.equal(part.read(0), source.read(4))
    assert (part.name(1), part.mode(1)) == ("noise[1]", "RGB")
