"""A pretraining method as its run left it, in front of pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from . import methods, pretraining
from . import run as runs
from .core import Method, Views
from .data.loader import ViewLoader
from .data.plain import pictures
from .data.source import Source
from .engine import checkpoint
from .evals.features import evaluating
from .nn.random import keys
from .recipe import Normalize
from .run import Run

CHECKPOINTS = "checkpoints"  # in a run's folder


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a method drew, the first two views before it: normalized, by name, a row a picture."""

    method: str
    step: int
    pictures: dict[str, Float[Tensor, "b c _ _"]]
    normalize: Normalize


def draws(out: Path) -> bool:
    """Whether WEIGHTS is the folder of a pretraining run with a checkpoint, whose method draws."""
    if not (out / runs.FILE).is_file() or not checkpoint.all_in(out / CHECKPOINTS):
        return False
    try:
        run = runs.read(out / runs.FILE)
    except ValueError:  # a run of another kind
        return False
    return methods.get(run.name).draw is not Method.draw


def draw(out: Path, source: Source, device: torch.device) -> Drawn:
    """What the method of the newest checkpoint draws of these pictures."""
    run = runs.read(out / runs.FILE)
    saved, _ = checkpoint.latest(out / CHECKPOINTS)
    if saved is None:
        raise ValueError(f"weights: {out} has no whole checkpoint; run it again")
    method = pretraining.build(replace(run, weights=""))
    method.load_state_dict(load_file(saved.path / checkpoint.FILES[0]), strict=True)
    method.to(device)
    batch = views(run, source, device)
    with evaluating(method):
        given = batch.images[:2] if len(batch.images) > 1 else []
        parts = {f"view {v + 1}": x for v, x in enumerate(given)} | method.draw(batch)
        made = {name: x.float().cpu() for name, x in parts.items()}
    return Drawn(run.name, saved.step, made, run.normalize)


def views(run: Run, source: Source, device: torch.device) -> Views:
    """One batch in the order of the source, as the method trains on it.

    A method of one view sees the pictures whole, in the middle square of its size.
    """
    rows = run.method.views
    if sum(v.count for v in rows) > 1:
        loader = ViewLoader(
            source,
            rows,
            run.normalize,
            batch_size=len(source),
            seed=run.seed,
            threads=1,
            device=device,
            order=lambda images, seed, epoch: torch.arange(images),
        )
        return next(loader.batches(0))
    size = rows[0].size
    (x, index), *_ = pictures(
        source,
        size=size,
        resize=size,
        interpolation=rows[0].interpolation,
        normalize=run.normalize,
        batch_size=len(source),
        threads=1,
    )
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(len(index), -1)
    return Views(
        images=[x.to(device)],
        index=index.to(device),
        key=keys(run.seed, 0, index).to(device),
        boxes=[box.to(device)],
        flips=[torch.zeros(len(index), dtype=torch.bool, device=device)],
        mean=run.normalize.mean,
        std=run.normalize.std,
    )
