import numpy as np
import pytest
import torch
from torch import nn

from saccade.core import Backbone
from saccade.data.source import open_source
from saccade.engine.probe import OnlineKnn
from saccade.recipe import Normalize

PLAIN = Normalize(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class MeanColor(Backbone):
    dim, channels, image_size = 3, 3, 8

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def features(self, x):
        return self.norm(x)

    def forward(self, x):
        return self.features(x).mean((2, 3))


def folder(path, colors):
    """A class folder per color, of twelve plain pictures each."""
    from PIL import Image

    for name, color in colors.items():
        (path / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (8, 8), color).save(path / name / f"{i}.png")
    return open_source(str(path))


def probe(bank, queries):
    return OnlineKnn(bank, queries, 8, PLAIN, batch_size=8, threads=1)


def test_classes_are_matched_by_name_not_by_number(tmp_path):
    bank = folder(tmp_path / "a", {"blue": "blue", "green": "green", "red": "red"})
    queries = folder(tmp_path / "b", {"green": "green", "red": "red"})
    assert queries.classes.index("red") != bank.classes.index("red")
    assert probe(bank, queries)(MeanColor()) == 1.0


def test_the_training_flag_and_the_statistics_stay(tmp_path):
    bank = folder(tmp_path / "a", {"blue": "blue", "red": "red"})
    model = MeanColor().train()
    before = model.norm.running_mean.clone()
    probe(bank, bank)(model)
    assert model.training
    assert torch.equal(model.norm.running_mean, before)


def test_a_class_that_training_lacks_is_refused(tmp_path):
    bank = folder(tmp_path / "a", {"blue": "blue", "red": "red"})
    queries = folder(tmp_path / "b", {"pink": "pink", "red": "red"})
    with pytest.raises(ValueError, match="class 'pink' is not among"):
        probe(bank, queries)


def test_large_sets_are_thinned_evenly(tmp_path):
    x = np.zeros((5000, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(5000, dtype=np.uint8) % 2)
    source = open_source(str(tmp_path / "x.npz"))
    rows = probe(source, source).sets[0][1]
    assert len(rows) == 4000
    assert (rows[0], rows[-1]) == (0, 4999)
