"""Toy encoders, batches and settings for every method."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from saccade import methods
from saccade.backbones.igpt import IGPT
from saccade.core import Backbone, Clock, PatchBackbone, View, Views
from saccade.nn import random

CLOCK = Clock(0, 10, 5)


class ConvNet(Backbone):
    """Two strided convolutions with batch norm."""

    dim, channels, image_size = 16, 3, 32

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False),
            norm(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1, bias=False),
            norm(16),
            nn.ReLU(),
        )

    def features(self, x):
        return self.body(x)

    def forward(self, x):
        return self.features(x).mean((2, 3))


class PatchNet(PatchBackbone):
    """A CLS token or none, two blocks of torch's own transformer, 32 pixels in patches of 8."""

    dim, channels, image_size, patch, stride, depth = 16, 3, 32, 8, 8, 2

    def __init__(self, grid=(4, 4), prefix=1):
        super().__init__()
        self.grid = grid
        self.prefix = prefix
        self.embed = nn.Conv2d(3, self.dim, self.patch, self.patch)
        front = torch.randn(1, prefix, self.dim) * 0.02
        self.cls_token = nn.Parameter(front) if prefix else None
        self.table = nn.Parameter(torch.randn(grid[0] * grid[1], self.dim) * 0.02)
        layer = nn.TransformerEncoderLayer(
            self.dim, 2, 32, 0.0, F.gelu, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def tokens(self, x):
        return self.embed(x).flatten(2).mT + self.positions(*x.shape[-2:])

    def positions(self, height, width):
        table = self.table.mT.unflatten(1, self.grid)[None]
        size = (height // self.patch, width // self.patch)
        if size != self.grid:
            table = F.interpolate(table, size, mode="bilinear")
        return table.flatten(2).mT

    def encode(self, tokens):
        return self.blocks(self._prefixed(tokens))

    def encode_and_look(self, tokens):
        y = self._prefixed(tokens)
        for layer in self.blocks.layers[:-1]:
            y = layer(y)
        last = self.blocks.layers[-1]
        x = last.norm1(y)
        _, seen = last.self_attn(x, x, x, average_attn_weights=False)
        return self.encode(tokens), seen[:, :, 0]

    def _prefixed(self, tokens):
        if self.cls_token is None:
            return tokens
        return torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1)

    def features(self, x):
        rows, columns = (side // self.patch for side in x.shape[-2:])
        return self.encode(self.tokens(x))[:, self.prefix :].mT.unflatten(2, (rows, columns))

    def forward(self, x):
        return self.encode(self.tokens(x))[:, 0]

    def layers(self, x, last, *, normed=True):
        """There is no final norm."""
        found = [self._prefixed(self.tokens(x))]
        for layer in self.blocks.layers:
            found.append(layer(found[-1]))
        return found[-last:]

    def attention(self, x):
        raise NotImplementedError

    @torch.no_grad()
    def fix_positions(self, table):
        self.table.copy_(table).requires_grad_(False)

    def projection(self):
        return self.embed


class Pixels(Backbone):
    """Returns the picture itself, so that a loss can be computed by hand."""

    channels, image_size = 3, 2

    def __init__(self, dim=12):
        super().__init__()
        self.dim = dim

    def features(self, x):
        return x

    def forward(self, x):
        return x.flatten(1)


def views(*images):
    """A batch of these pictures with the keys of epoch 0, as if cropped about the center."""
    index = torch.arange(len(images[0]))
    key = random.keys(0, 0, index)
    edges = [random.uniform(key, 5, f"view {v}") for v in range(len(images))]
    boxes = [torch.cat([0.3 * e[:, :2], 0.7 + 0.3 * e[:, 2:4]], 1) for e in edges]
    flips = [e[:, 4] < 0.5 for e in edges]
    return Views(
        images=list(images), index=index, key=key, boxes=boxes, flips=flips, labels=index % 3
    )


def noise(seed=0, b=8, sizes=(32, 32)):
    """Pictures of random color fields, each view with its own grain; one view for each size."""
    g = torch.Generator().manual_seed(seed)
    fields = torch.randn(b, 3, 2, 2, generator=g)
    grain = (0.5 * torch.randn(b, 3, size, size, generator=g) for size in sizes)
    return views(*(F.interpolate(fields, x.shape[-2:]) + x for x in grain))


def share(batch, rank, world):
    """The rows of a batch that one of several ranks has."""
    each = len(batch.index) // world
    mine = slice(rank * each, (rank + 1) * each)
    lists = {k: [x[mine] for x in getattr(batch, k)] for k in ("images", "boxes", "flips")}
    others = {k: getattr(batch, k)[mine] for k in ("index", "key", "labels")}
    return dataclasses.replace(batch, **lists, **others)


SMALL = {
    "hidden": 16,
    "dim": 8,
    "queue_size": 32,
    "momentum": 0.9,
    "prototypes": 12,
    "bottleneck": 8,
    "freeze_last_layer": 0,
    "predictor_hidden": 16,
    "queue_from_epoch": 0,
    "images": 64,
    "negatives": 16,
    "decoder_dim": 8,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "patch_bottleneck": 8,
    "tokenizer": "color",
    "codes": 12,
    "code_dim": 4,
    "masked": 6,
    "min_block": 2,
    "regressor_depth": 1,
    "drop_path": 0.0,
    "patch_size": 6,
    "mask_size": 8,
    "min_keep": 2,
    "predictor_dim": 8,
    "predictor_depth": 1,
    "predictor_heads": 2,
    "last_layers": 2,
}
CROPS = (32, 32, 16, 16)
SIZES = dict.fromkeys(("dino", "swav", "mst", "ibot", "dinov2"), CROPS)
SIZES |= {"mae": (32,), "igpt": (8,)}
SIZES |= {"infomin": (32, 32, 24), "clsa": (32, 32, 16)}
SIZES |= dict.fromkeys(("beit", "cae", "tokenizer"), (32,))
SIZES |= dict.fromkeys(("simmim", "mlm", "data2vec", "ijepa"), (32,))
PATCHES = ("mst", "ibot", "dinov2")  # methods for plain transformers only


def colored(causal=True, **settings):
    """An iGPT of 8 colors for 8 pixels, whose scores no longer stand at zero."""
    sizes = {"dim": 16, "depth": 2, "heads": 2, "image_size": 8, "colors": 8} | settings
    net = IGPT(causal=causal, **sizes)
    nn.init.normal_(net.output.weight, std=0.1)
    return net


def build(name, **settings):
    """A toy of the method, the same at every call."""
    torch.manual_seed(0)
    cls = methods.get(name)
    known = {f.name for f in dataclasses.fields(cls.Config)}
    small = {k: v for k, v in SMALL.items() if k in known} | settings
    if name == "ijepa":
        return cls(cls.Config(views=(View(size=32),), **small), PatchNet(prefix=0))
    if name in ("mae", "beit", "cae", "tokenizer", "simmim", "mlm", "data2vec"):
        return cls(cls.Config(views=(View(size=32),), **small), PatchNet())
    if name == "igpt":
        return cls(cls.Config(views=(View(size=8),), **small), colored())
    return cls(cls.Config(**small), PatchNet() if name in PATCHES else ConvNet())


def batch_for(name, seed=0, b=8):
    return noise(seed, b, SIZES.get(name, (32, 32)))


def train(task, batches, *, lr=0.05, total=10):
    """The engine's order of events, and the loss of every step."""
    task.train()
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr, 0.9)
    losses = []
    for i, batch in enumerate(batches):
        clock = Clock(i, total, 5)
        loss = task(batch, clock).loss
        optimizer.zero_grad()
        loss.backward()
        task.before_update(clock)
        optimizer.step()
        task.after_update(clock)
        losses.append(loss.item())
    return losses
