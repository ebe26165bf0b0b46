"""What one training step costs: ours, the bare encoder, and lightly's modules, in turn.

A round times each arm once, one after the other, so that a machine that slows down slows all.
`bare`: the encoder's forward and backward on the pictures that the method trains on, and its
forward on those that a teacher sees. `saccade`: the method as the engine runs it, with optimizer
and hooks. `lightly`: its modules put together as its documentation does, around the same encoder,
with optimizer and momentum update. No arm counts the loading of pictures.
"""

from __future__ import annotations

import copy
import datetime
import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from . import __version__, backbones, methods
from .core import Backbone, Clock, Method, PatchBackbone, View, Views
from .engine import optim
from .engine.distributed import device as this_device
from .nn.random import keys
from .recipe import BackboneConfig, Optim

Work = Callable[[], None]  # one step of an arm

LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
OPTIM = Optim(name="sgd", lr=0.01, weight_decay=1e-4)  # of every arm but `bare`


@dataclass(frozen=True, slots=True)
class Passes:
    """Which views an encoder passes forward and backward, and which forward alone."""

    trained: slice
    frozen: slice


PASSES = {
    "simclr": Passes(slice(0, 2), slice(0, 0)),
    "moco": Passes(slice(0, 1), slice(1, 2)),
    "dino": Passes(slice(0, None), slice(0, 2)),
    "mae": Passes(slice(0, 1), slice(0, 0)),  # of whole pictures: MAE itself encodes a quarter
}


def run_step(
    method: str,
    *,
    image_size: int = 64,
    batch_size: int = 64,
    rounds: int = 10,
    backbone: str = "resnet18",
) -> dict[str, Any]:
    """Seconds of every arm in every round, and ratios, ready for JSON.

    A convolutional encoder is timed in both memory layouts; the engine trains in channels-last.
    Ratios are medians over the rounds, between quartiles, in the better layout of each side.
    """
    if method not in PASSES:
        raise ValueError(
            f"setting method: no bench for {method!r}; choose from {', '.join(PASSES)}"
        )
    torch.manual_seed(0)
    convolutional = not backbone.startswith("vit")  # the paper's stem, as lightly's users train it
    stem = "paper" if convolutional else "auto"
    name = BackboneConfig(name=backbone, image_size=image_size, stem=stem)
    cfg, encoder = fitted(method, name), backbones.create(name)
    if method == "mae" and not isinstance(encoder, PatchBackbone):
        raise ValueError(
            f"setting backbone: {backbone} has no patches to hide; choose vit_nano_patch8_64"
        )
    arms = _arms(method, cfg, encoder, _pictures(cfg.views, batch_size))
    seconds = interleave(arms, rounds)
    return {
        "bench": "step",
        "date": datetime.date.today().isoformat(),
        "settings": {
            "method": method,
            "backbone": backbone,
            "image_size": image_size,
            "batch_size": batch_size,
            "rounds": rounds,
            "method_config": asdict(cfg),
            "optim": asdict(OPTIM),
        },
        "machine": machine(),
        "versions": versions(),
        "arms": {arm: {"seconds": s, **spread(s)} for arm, s in seconds.items()},
        "ratios": ratios(seconds),
    }


def fitted(method: str, backbone: BackboneConfig) -> Any:
    """The paper's Config with its crops scaled to this picture size, in whole patches."""
    cfg = methods.get(method).Config()  # type: ignore[attr-defined]
    encoder = backbones.create(backbone)
    step = encoder.patch if isinstance(encoder, PatchBackbone) else 1
    largest = max(view.size for view in cfg.views)

    def scaled(view: View) -> View:
        patches = round(view.size / largest * backbone.image_size / step)
        return replace(view, size=max(patches, 1) * step)

    return replace(cfg, views=tuple(map(scaled, cfg.views)))


def interleave(arms: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Seconds of each arm in each round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for lap in range(rounds + 1):
        for name, work in arms.items():
            began = _now()
            work()
            if lap:
                seconds[name].append(_now() - began)
    return seconds


def ratios(seconds: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Ours to bare, lightly's to bare, ours to lightly's, each in its better layout."""
    best = {}
    for side in ("bare", "saccade", "lightly"):
        arms = [arm for arm in seconds if arm.partition("/")[0] == side]
        if arms:
            best[side] = min(arms, key=lambda arm: statistics.median(seconds[arm]))
    found = {}
    for a, b in (("saccade", "bare"), ("lightly", "bare"), ("saccade", "lightly")):
        if a in best and b in best:
            pairs = zip(seconds[best[a]], seconds[best[b]], strict=True)
            found[f"{a} / {b}"] = {**spread([x / y for x, y in pairs]), "of": [best[a], best[b]]}
    return found


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def versions() -> dict[str, str]:
    """Of what took part."""
    others = {name: version(name) for name in ("torch", "torchvision", "timm", "lightly")}
    return {"python": platform.python_version(), "saccade": __version__, **others}


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = torch.tensor(values).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    return {"median": middle, "low": low, "high": high}


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _pictures(views: tuple[View, ...], batch_size: int) -> Views:
    index = torch.arange(batch_size, device=this_device())
    sizes = [view.size for view in views for _ in range(view.count)]
    images = [torch.randn(batch_size, 3, s, s, device=index.device) for s in sizes]
    return Views(images=images, index=index, key=keys(0, 0, index))


def _arms(method: str, cfg: Any, encoder: Backbone, batch: Views) -> dict[str, Work]:
    """Every side in every layout, each around its own copy of the encoder."""
    builders: dict[str, Callable[[Backbone, Views], Work]] = {
        "bare": lambda net, b: _bare(PASSES[method], net, b.images),
        "saccade": lambda net, b: _saccade(methods.get(method)(cfg, net), b),
    }
    if method == "simclr":
        builders["lightly"] = lambda net, b: _lightly_simclr(cfg, net, b.images)
    if method == "moco":
        builders["lightly"] = lambda net, b: _lightly_moco(cfg, net, b.images)
    layouts = ["contiguous"] if isinstance(encoder, PatchBackbone) else list(LAYOUTS)
    arms = {}
    for side, layout in itertools.product(builders, layouts):
        net = copy.deepcopy(encoder).to(this_device()).train()
        net.to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
        images = [x.to(memory_format=LAYOUTS[layout]) for x in batch.images]
        arms[f"{side}/{layout}"] = builders[side](net, replace(batch, images=images))
    return arms


def _bare(passes: Passes, encoder: Backbone, images: list[Tensor]) -> Work:
    trained, frozen = (_by_size(images[part]) for part in (passes.trained, passes.frozen))

    def work() -> None:
        with torch.no_grad():
            for x in frozen:
                encoder(x)
        encoder.zero_grad(set_to_none=True)
        torch.stack([encoder(x).square().mean() for x in trained]).sum().backward()

    return work


def _by_size(images: list[Tensor]) -> list[Tensor]:
    runs = itertools.groupby(images, key=lambda x: x.shape[-1])
    return [torch.cat(list(run)) for _, run in runs]


def _saccade(task: Method, batch: Views) -> Work:
    task.to(batch.index.device).train()
    optimizer = optim.build(task, OPTIM)
    clock = Clock(1, 1000, 100)
    optim.set_rates(optimizer, OPTIM.lr, OPTIM.lr, 1e-4)

    def work() -> None:
        loss = task(batch, clock).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        task.before_update(clock)
        optimizer.step()
        task.after_update(clock)

    return work


def _sgd(*modules: nn.Module) -> torch.optim.Optimizer:
    params = [p for m in modules for p in m.parameters()]
    return torch.optim.SGD(params, lr=OPTIM.lr, momentum=OPTIM.momentum, weight_decay=1e-4)


def _lightly_simclr(cfg: Any, encoder: Backbone, images: list[Tensor]) -> Work:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    head = SimCLRProjectionHead(encoder.dim, cfg.hidden, cfg.dim).to(images[0].device)
    criterion = NTXentLoss(temperature=cfg.temperature)
    optimizer = _sgd(encoder, head)

    def work() -> None:
        a, b = (head(encoder(x)) for x in images)
        loss = criterion(a, b)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return work


def _lightly_moco(cfg: Any, encoder: Backbone, images: list[Tensor]) -> Work:
    from lightly.loss import NTXentLoss
    from lightly.models import utils
    from lightly.models.modules import MoCoProjectionHead

    head = MoCoProjectionHead(encoder.dim, cfg.hidden, cfg.dim).to(images[0].device)
    slow, slow_head = copy.deepcopy(encoder), copy.deepcopy(head)
    for module in (slow, slow_head):
        utils.deactivate_requires_grad(module)
    criterion = NTXentLoss(cfg.temperature, memory_bank_size=(cfg.queue_size, cfg.dim))
    criterion.to(images[0].device)
    optimizer = _sgd(encoder, head)

    def work() -> None:
        utils.update_momentum(encoder, slow, m=cfg.momentum)
        utils.update_momentum(head, slow_head, m=cfg.momentum)
        query = head(encoder(images[0]))
        with torch.no_grad():
            shuffled, order = utils.batch_shuffle(images[1])
            key = utils.batch_unshuffle(slow_head(slow(shuffled)), order)
        loss = criterion(query, key)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return work


def show(found: dict[str, Any]) -> None:
    """Medians of every arm and ratios between them, as a table."""
    from rich.console import Console
    from rich.table import Table

    settings = found["settings"]
    view = Table(
        title=f"one {settings['method']} step, {settings['backbone']}, "
        f"{settings['image_size']} px, batch {settings['batch_size']}",
        caption=f"medians of {settings['rounds']} interleaved rounds, between quartiles",
    )
    for name in ("what", "median", "quartiles"):
        view.add_column(name, justify="left" if name == "what" else "right")
    for unit, rows in ((" s", found["arms"]), ("", found["ratios"])):
        for name, row in rows.items():
            quartiles = f"{row['low']:.3f} to {row['high']:.3f}"
            view.add_row(name, f"{row['median']:.3f}{unit}", quartiles)
    Console().print(view)
