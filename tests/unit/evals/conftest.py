import numpy as np
import pytest
import torch

from saccade.core import Backbone
from saccade.data.source import BadPicture, Source
from saccade.evals.features import Data, Features
from saccade.recipe import Normalize


class Toy(Source):
    """Random 8-bit pictures, brighter the higher their class; some cannot be read."""

    channels, split, skipped = 3, "", 0

    def __init__(self, n=12, classes=3, size=16, bad=(), labeled=True, seed=0):
        draws = torch.Generator().manual_seed(seed)
        self.classes = tuple("abcdefgh"[:classes]) if labeled else ()
        self.labels = np.arange(n) % classes if labeled else None
        noise = torch.randint(0, 60, (n, 3, size, size), generator=draws)
        self.x = (noise + 60 * (torch.arange(n) % classes)[:, None, None, None]).to(torch.uint8)
        self.bad = bad

    def __len__(self):
        return len(self.x)

    def stored(self, i):
        if i in self.bad:
            raise BadPicture(self.name(i), "cut short")
        return self.x[i]

    def name(self, i):
        return f"{i}.png"


class Net(Backbone):
    """One convolution and a batch norm."""

    dim, channels, image_size = 8, 3, 16

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, 4), torch.nn.BatchNorm2d(8))

    def features(self, x):
        return self.body(x)

    def forward(self, x):
        return self.features(x).mean((2, 3))


@pytest.fixture
def toy():
    return Toy


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def given(net):
    """Data whose features are these."""

    def make(bank, y, query, truth, kind="pooled", classes=None):
        train, test = Toy(classes=int(y.max()) + 1), Toy(classes=int(y.max()) + 1)
        if classes is not None:
            train.classes, test.classes = classes
        data = Data(net, train, test, normalize=Normalize())
        for train, x, t in ((True, bank, y), (False, query, truth)):
            data._taken[kind, train] = Features(x, t, torch.arange(len(x)))
        return data

    return make
