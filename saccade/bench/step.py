"""What one training step costs: ours, the bare encoder, and lightly's modules, in turn.

`bare`: the encoder's forward and backward on the pictures that the method trains on, and its
forward on those that a teacher sees. `saccade`: the method as the engine runs it, with optimizer
and hooks. `lightly`, where it is installed: its modules put together as its documentation does,
around the same encoder, with optimizer and momentum update. `unmasked`: MAE that hides one patch
alone, as near as it comes to encoding whole pictures. `crops` and `large`, of views of several
sizes: the bare encoder's forward and backward on all views, and on the largest ones alone; `share`
is what their pixels say this ratio should be. No arm counts the loading of pictures.

One thread of a CPU is timed by the processor time of the process, which other work on the machine
does not stretch; anything else by the clock on the wall. `bytes` is the most that was alive at any
time of a step, above weights, momenta and pictures (see `memory`); `held` what a method keeps
beside its encoders, part by part: heads, queues, a bank or a classifier of `images` pictures.
"""

from __future__ import annotations

import copy
import datetime
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from .. import backbones, methods
from ..config import suggest
from ..core import Backbone, Clock, Method, PatchBackbone, View, Views
from ..engine import optim
from ..engine.distributed import device as this_device
from ..nn.random import keys
from ..recipe import BackboneConfig, Optim
from . import Work, interleave, machine, single, spread, versions, wall
from .memory import peak

LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
OPTIM = Optim(name="sgd", lr=0.01, weight_decay=1e-4)  # of every arm but `bare`


@dataclass(frozen=True, slots=True)
class Passes:
    """Which views an encoder passes forward and backward, and which forward alone."""

    trained: slice
    frozen: slice


NONE, ONE, BOTH, ALL = slice(0, 0), slice(0, 1), slice(0, 2), slice(0, None)
PASSES = {
    **dict.fromkeys(
        (
            *("barlow_twins", "end_to_end", "nnclr", "simclr", "simclr_v2"),
            *("simsiam", "supcon", "vicreg"),
        ),
        Passes(BOTH, NONE),
    ),
    **dict.fromkeys(("moco", "infomin"), Passes(ONE, slice(1, 2))),
    **dict.fromkeys(("byol", "moby", "moco_v3", "pixcontrast", "pixpro"), Passes(BOTH, BOTH)),
    **dict.fromkeys(("exemplar_cnn", "memory_bank", "moco_bank", "pic"), Passes(ONE, NONE)),
    "clsa": Passes(slice(1, None), ONE),  # the key is as large as the query
    **dict.fromkeys(("dino", "dinov2", "ibot", "mst"), Passes(ALL, BOTH)),
    "swav": Passes(ALL, NONE),
    # Of whole pictures: MAE itself encodes a quarter, I-JEPA and CAE a part.
    **dict.fromkeys(("beit", "mae", "mlm", "simmim"), Passes(ONE, NONE)),
    **dict.fromkeys(("cae", "data2vec", "ijepa"), Passes(ONE, ONE)),
}
HIDING = ("beit", "cae", "data2vec", "dinov2", "ibot", "ijepa", "mae", "mlm")


def run_steps(names: Sequence[str], **settings: Any) -> dict[str, Any]:
    """`run_step` of several methods, one after the other, ready for JSON."""
    return {
        "bench": "steps",
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "methods": {name: run_step(name, **settings) for name in names},
    }


def run_step(
    method: str,
    *,
    image_size: int = 0,
    batch_size: int = 64,
    rounds: int = 10,
    backbone: str = "",
    recipe: str = "",
    images: int = 0,
) -> dict[str, Any]:
    """Seconds of every arm in every round, bytes of every arm, and ratios, ready for JSON.

    A convolutional encoder is timed in both memory layouts; the engine trains in channels-last.
    Ratios are medians over the rounds, between quartiles, in the better layout of each side.
    Without a recipe the method is as in its paper, around a ResNet-18 at 64 pixels. A bank of
    features or a classifier of pictures has room for `images`; 0: for one batch.
    """
    if images and images < batch_size:
        raise ValueError(f"setting images: {images} is below batch_size={batch_size}; give more")
    if method not in PASSES:
        raise ValueError(f"setting method: no bench for {method!r}{suggest(method, PASSES)}")
    torch.manual_seed(0)
    name = named(method, backbone, image_size, recipe)
    cfg, encoder = fitted(method, name, recipe), backbones.create(name)
    cfg = _counted(cfg, images or batch_size)
    arms = _arms(method, cfg, encoder, _pictures(cfg.views, batch_size))
    return {
        "bench": "step",
        "date": datetime.date.today().isoformat(),
        "settings": {
            "method": method,
            "backbone": name.name,
            "image_size": name.image_size,
            "batch_size": batch_size,
            "rounds": rounds,
            "recipe": recipe,
            "images": images or batch_size,
            "clock": "process" if single() else "wall",
            "method_config": asdict(cfg),
            "optim": asdict(OPTIM),
        },
        "machine": machine(),
        "versions": versions(),
        "held": _held(methods.get(method)(cfg, copy.deepcopy(encoder))),
        **_measured(arms, rounds, _share(cfg.views)),
    }


def _share(views: tuple[View, ...]) -> float:
    """Pixels of all views over those of the largest."""
    areas = [view.size**2 for view in views for _ in range(view.count)]
    return sum(areas) / sum(a for a in areas if a == max(areas))


def _held(task: Method) -> dict[str, int]:
    """Bytes of what a method keeps beside its encoders, by part, largest first."""
    found: dict[str, int] = {}
    for name, tensor in task.state_dict().items():
        part = name.partition(".")[0]
        if part not in ("encoder", "teacher"):
            found[part] = found.get(part, 0) + tensor.numel() * tensor.element_size()
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _counted(cfg: Any, images: int) -> Any:
    """A bank of features, or a classifier of pictures, has room for so many."""
    return replace(cfg, images=images) if "images" in {f.name for f in fields(cfg)} else cfg


def _measured(arms: dict[str, Work], rounds: int, share: float) -> dict[str, Any]:
    """Seconds and bytes of every arm, and ratios between them."""
    seconds = interleave(arms, rounds, time.process_time if single() else wall)
    rows = {
        arm: {"seconds": s, "bytes": peak(arms[arm]), **spread(s)} for arm, s in seconds.items()
    }
    found = ratios(seconds)
    if "crops / large" in found:
        found["crops / large"]["share"] = share
    return {"arms": rows, "ratios": found}


def named(method: str, backbone: str, image_size: int, recipe: str) -> BackboneConfig:
    """The recipe's backbone, or that of the name, at the size asked for."""
    if recipe:
        known = methods.recipes(method)
        if recipe not in known:
            raise ValueError(f"setting recipe: {method} has no {recipe!r}{suggest(recipe, known)}")
        own = known[recipe].backbone
        return replace(own, name=backbone or own.name, image_size=image_size or own.image_size)
    backbone = backbone or "resnet18"
    convolutional = not backbone.startswith("vit")  # the paper's stem, as lightly's users train it
    stem = "paper" if convolutional else "auto"
    return BackboneConfig(name=backbone, image_size=image_size or 64, stem=stem)


def fitted(method: str, backbone: BackboneConfig, recipe: str = "") -> Any:
    """The method's Config with its crops scaled to this picture size, in whole patches."""
    cls: Any = methods.get(method)
    cfg = methods.recipes(method)[recipe].method if recipe else cls.Config()
    encoder = backbones.create(backbone)
    step = encoder.patch if isinstance(encoder, PatchBackbone) else 1
    largest = max(view.size for view in cfg.views)

    def scaled(view: View) -> View:
        patches = round(view.size / largest * backbone.image_size / step)
        return replace(view, size=max(patches, 1) * step)

    return replace(cfg, views=tuple(map(scaled, cfg.views)))


def ratios(seconds: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Ours to bare, to unmasked, lightly's to bare, ours to lightly's, in the better layouts."""
    best = {}
    for side in ("bare", "saccade", "lightly", "unmasked", "crops", "large"):
        arms = [arm for arm in seconds if arm.partition("/")[0] == side]
        if arms:
            best[side] = min(arms, key=lambda arm: statistics.median(seconds[arm]))
    found = {}
    pairs_of_sides = [("saccade", b) for b in ("bare", "unmasked", "lightly")]
    for a, b in (*pairs_of_sides, ("lightly", "bare"), ("crops", "large")):
        if a in best and b in best:
            pairs = zip(seconds[best[a]], seconds[best[b]], strict=True)
            found[f"{a} / {b}"] = {**spread([x / y for x, y in pairs]), "of": [best[a], best[b]]}
    return found


def _pictures(views: tuple[View, ...], batch_size: int) -> Views:
    index = torch.arange(batch_size, device=this_device())
    sizes = [view.size for view in views for _ in range(view.count)]
    images = [torch.randn(batch_size, 3, s, s, device=index.device) for s in sizes]
    corners = [0.4 * torch.rand(batch_size, 2, device=index.device) for _ in sizes]
    return Views(
        images=images,
        index=index,
        key=keys(0, 0, index),
        boxes=[torch.cat([c, c + 0.6], 1) for c in corners],
        flips=[c[:, 0] < 0.2 for c in corners],
        labels=index % 10,
    )


def _arms(method: str, cfg: Any, encoder: Backbone, batch: Views) -> dict[str, Work]:
    """Every side in every layout, each around its own copy of the encoder."""
    if method in HIDING and not isinstance(encoder, PatchBackbone):
        raise ValueError(
            f"setting backbone: {method} hides patches and this network has none; "
            "choose vit_nano_patch8_64"
        )
    builders: dict[str, Callable[[Backbone, Views], Work]] = {
        "bare": lambda net, b: _bare(PASSES[method], net, b.images),
        "saccade": lambda net, b: _saccade(methods.get(method)(cfg, net), b),
    }
    if method == "mae":
        assert isinstance(encoder, PatchBackbone)
        whole = replace(cfg, mask_ratio=1 / math.prod(encoder.grid))
        builders["unmasked"] = lambda net, b: _saccade(methods.get(method)(whole, net), b)
    peer = {"simclr": _lightly_simclr, "moco": _lightly_moco}.get(method)
    if peer and find_spec("lightly"):
        builders["lightly"] = lambda net, b: peer(cfg, net, b.images)
    sizes = [x.shape[-1] for x in batch.images]
    if PASSES[method].trained == ALL and min(sizes) < max(sizes):
        some = Passes(slice(0, sizes.count(max(sizes))), NONE)  # the largest come first
        builders["crops"] = lambda net, b: _bare(Passes(ALL, NONE), net, b.images)
        builders["large"] = lambda net, b: _bare(some, net, b.images)
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
    for name in ("what", "median", "quartiles", "MB"):
        view.add_column(name, justify="left" if name == "what" else "right")
    for unit, rows in ((" s", found["arms"]), ("", found["ratios"])):
        for name, row in rows.items():
            quartiles = f"{row['low']:.3f} to {row['high']:.3f}"
            size = f"{row['bytes'] / 1e6:.1f}" if unit else ""
            view.add_row(name, f"{row['median']:.3f}{unit}", quartiles, size)
    Console().print(view)
    if found["held"]:
        parts = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in found["held"].items())
        Console().print(f"beside its encoders the method keeps, in MB: {parts}")


def show_steps(found: dict[str, Any]) -> None:
    """One row for each method: its step beside the bare encoder's."""
    from rich.console import Console
    from rich.table import Table

    view = Table(caption="medians of interleaved rounds, ratios between quartiles")
    numbers = ("pixels", "batch", "step, s", "over bare", "MB", "bare, MB", "kept, MB")
    for name in ("method", "backbone", *numbers):
        view.add_column(name, justify="left" if name in ("method", "backbone") else "right")
    for name, one in found["methods"].items():
        settings, ratio = one["settings"], one["ratios"]["saccade / bare"]
        own, bare = (one["arms"][arm] for arm in ratio["of"])
        view.add_row(
            name,
            settings["backbone"],
            str(settings["image_size"]),
            str(settings["batch_size"]),
            f"{own['median']:.3f}",
            f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
            f"{own['bytes'] / 1e6:.1f}",
            f"{bare['bytes'] / 1e6:.1f}",
            f"{sum(one['held'].values()) / 1e6:.1f}",
        )
    Console().print(view)
