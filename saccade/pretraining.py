"""From a folder of pictures to a backbone: what `saccade pretrain` does, in order."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import get_args

import torch

from . import backbones, config, methods, stage, weights
from . import run as runs
from .core import Backbone, Method, PatchBackbone, PixelBackbone
from .data import band_views
from .data.bad import Bad, write_bad
from .data.check import scan, statistics
from .data.loader import ViewLoader
from .data.memory import in_memory
from .data.packing import pack
from .data.source import Source, open_source
from .data.stream import Stream, StreamLoader, is_stream, open_stream
from .engine import distributed
from .engine.fit import check_engine, fit
from .engine.health import Health
from .engine.log import counter
from .engine.probe import OnlineKnn
from .engine.sharding import gathered, whole_again
from .nn import dist, norm
from .nn.parts import Ema
from .recipe import Normalize
from .run import Run

KINDS = {  # of encoders that a method can ask for, and one of each
    PatchBackbone: ("plain vision transformer", "vit_tiny_patch4_32"),
    PixelBackbone: ("transformer over colors", "igpt_nano_32"),
}
STATISTICS = 512  # pictures, evenly spread, for the mean and deviation of other channels than RGB


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A finished or interrupted run, and how it went in one sentence."""

    out: Path
    finished: bool
    verdict: str
    seconds: float


def prepare(run: Run, out: Path, *, resume: bool, overwrite: bool) -> None:
    """Check what can be checked without work; nothing is written. Raises ValueError."""
    stage.prepare(run, out, resume=resume, overwrite=overwrite)
    if resume:
        _check_same(run, out)


def build(run: Run) -> Method:
    """The method around a fresh encoder: the same weights for the same run."""
    torch.manual_seed(run.seed)
    encoder = backbones.create(run.backbone, run.normalize)
    _check_kind(run, encoder)
    method = methods.get(run.name)(run.method, encoder)
    if run.weights:
        stage.initialize(method.encoder, run)
        for m in method.modules():
            if isinstance(m, Ema) and isinstance(m.module, Backbone):  # teachers start as copies
                m.module.load_state_dict(method.encoder.state_dict())
    return method


def pretrain(run: Run, out: Path, *, resume: bool = False, overwrite: bool = False) -> Pretrained:
    """Train, leaving in `out`: run.json, metrics.jsonl, checkpoints/, initial/, backbone/.

    `initial` is the same encoder before training, the control arm of every figure. Methods that
    pretrain layers beyond the encoder leave heads.safetensors too.
    """
    began = time.perf_counter()
    with distributed.group() as device:
        first = dist.rank() == 0
        if first:  # the other ranks must not look while this one writes
            prepare(run, out, resume=resume, overwrite=overwrite)
        train, test, bad = sources(run)
        run = normalized(counted(run, len(train)), train)
        method = build(run)
        loader = make_loader(run, method, train, device)
        if first:
            if resume:
                _check_same(run, out)
            stage.start_folder(run, out, resume=resume)
            _keep(run, method, out / "initial")
            write_bad(out / stage.BAD, bad)
            stage.announce(run, out, f"{len(train)} pictures", bad)
            _announce_channels(run)
        method = place(run, method, device)
        health = Health(remedy=method.remedy)
        ended = fit(
            method,
            loader,
            run.optim,
            run.engine,
            out=out,
            steps=total_steps(run, loader),
            batch_size=run.batch_size,
            seed=run.seed,
            device=device,
            health=health,
            probe=_probe(run, method, train, test) if first or run.engine.shard else None,
            resume=resume,
        )
        verdict = health.verdict(ended.wait)
        if run.engine.shard:
            method = whole_again(build(run), method)
        if first:
            later = [Bad(train.name(i), reason) for i, reason in loader.bad.items()]
            write_bad(out / stage.BAD, [*bad, *later])
            _keep(run, method, out / "backbone")
            if heads := method.heads():
                weights.write_state(out / stage.HEADS, heads)
            if not ended.interrupted:
                stage.finish(out, ended.step, verdict, time.perf_counter() - began)
    return Pretrained(out, not ended.interrupted, verdict, time.perf_counter() - began)


def sources(run: Run) -> tuple[Source, Source | None, list[Bad]]:
    """Training pictures, test pictures where there are labelled ones, and what was unreadable."""
    channels = run.backbone.channels
    if is_stream(run.data):
        return _stream(run, channels), _test(run, channels), []
    data, unreadable = _packed(run, channels)
    source = open_source(data, split="train", channels=channels, limit=run.limit)
    budget = int(run.engine.memory_gb * 2**30)
    train, bad = in_memory(
        source, budget=budget, threads=run.engine.workers, progress=counter("reading pictures")
    )
    return train, _test(run, channels), [*unreadable, *bad]


def counted(run: Run, images: int) -> Run:
    """The run with the number of its pictures, where the method has a state for each."""
    if "images" not in {f.name for f in fields(run.method)}:
        return run
    if run.method.images not in (0, images):
        raise ValueError(
            f"setting method.images: {run.method.images}, but the data has {images} pictures; "
            "leave it at 0"
        )
    return replace(run, method=replace(run.method, images=images))


def normalized(run: Run, train: Source | Stream) -> Run:
    """The run with the data's own mean and deviation, where its recipe's are for RGB."""
    if not _for_rgb(run) or isinstance(train, Stream):
        return run
    found = scan(train, sample=STATISTICS, threads=run.engine.workers)
    mean, std = (x.tolist() for x in statistics(found.looks, run.backbone.channels))
    own = Normalize(
        mean=tuple(float(f"{x:.6g}") for x in mean),
        std=tuple(float(f"{x:.6g}") if x else 1.0 for x in std),
    )
    return replace(run, normalize=own)


def total_steps(run: Run, loader: ViewLoader | StreamLoader) -> int:
    return run.steps or run.epochs * (loader.steps // run.engine.accumulate)


def make_loader(
    run: Run, method: Method, train: Source, device: torch.device
) -> ViewLoader | StreamLoader:
    if method.labelled and train.labels is None:
        raise ValueError(
            f"setting method: {run.name} needs labels and the data has none; "
            "give a folder for each class, or choose simclr"
        )
    check_engine(method, run.engine)
    part = run.batch_size // run.engine.accumulate
    if isinstance(train, Stream):
        return StreamLoader(
            train,
            run.method.views,
            run.normalize,
            batch_size=part,
            seed=run.seed,
            window=run.shuffle,
            rank=dist.rank(),
            world=dist.world(),
            threads=run.engine.workers,
            device=device,
        )
    return ViewLoader(
        train,
        run.method.views,
        run.normalize,
        batch_size=part,
        seed=run.seed,
        rank=dist.rank(),
        world=dist.world(),
        threads=run.engine.workers,
        device=device,
        order=method.order,
    )


def place(run: Run, method: Method, device: torch.device) -> Method:
    """On its device, with statistics over all ranks where the recipe wants that."""
    if run.sync_batch_norm and dist.world() > 1:
        norm.synchronize(method)
    stage.place(method, method.encoder, device, channels_last=run.engine.channels_last)
    return method


def _check_kind(run: Run, encoder: Backbone) -> None:
    """Refuse a network of another kind than the method is for: the parameter of its base class."""
    bases = vars(methods.get(run.name)).get("__orig_bases__", ())
    asked = [kind for base in bases for kind in get_args(base)]
    for kind, (words, example) in KINDS.items():
        if kind in asked and not isinstance(encoder, kind):
            raise ValueError(
                f"setting backbone.name: {run.backbone.name} is no {words}, which {run.name} needs;"
                f" choose one such as {example}"
            )


def _for_rgb(run: Run) -> bool:
    """Whether other channels are asked for, but statistics still are three."""
    given = {len(run.normalize.mean), len(run.normalize.std)}
    return run.backbone.channels != 3 and given == {3}


def _announce_channels(run: Run) -> None:
    if run.backbone.channels == 3:
        return
    lost = band_views.skipped(run.method.views, run.backbone.channels)
    without = f"; {', '.join(lost)} need RGB and are skipped" if lost else ""
    show = lambda values: ", ".join(f"{x:g}" for x in values)  # noqa: E731
    print(
        f"saccade: {run.backbone.channels} channels{without}; "
        f"normalize.mean=[{show(run.normalize.mean)}] normalize.std=[{show(run.normalize.std)}]",
        file=sys.stderr,
        flush=True,
    )


def _check_same(run: Run, out: Path) -> None:
    if not (out / runs.FILE).is_file():  # killed before it began, or never started
        return
    before = runs.read(out / runs.FILE)
    same = replace(run, engine=before.engine)
    if run.name == before.name and config.to_dict(run.method).get("images") == 0:  # not counted yet
        same = counted(same, before.method.images)
    if _for_rgb(same):  # not normalized yet
        same = replace(same, normalize=before.normalize)
    stage.check_same(same, before, out, "pretrain")


def _stream(run: Run, channels: int) -> Stream:
    """The training pictures as a stream, which settings for pictures at hand do not fit."""
    kind = methods.get(run.name)
    for setting, given in (
        ("limit", run.limit),
        ("engine.cache.folder", run.engine.cache.folder),
        ("method", run.name if kind.order is not Method.order else ""),  # chooses its own order
    ):
        if given:
            raise ValueError(
                f"setting {setting}: {given} needs pictures at hand, and {run.data} is a stream; "
                "download it, or drop the setting"
            )
    return open_stream(run.data, channels, counter("counting shards"))


def _packed(run: Run, channels: int) -> tuple[str, list[Bad]]:
    """The data, or the pack that stands for it, and what could not be packed."""
    cache, threads = run.engine.cache, run.engine.workers
    if not cache.folder:
        return run.data, []
    report = pack(
        run.data, cache, channels=channels, threads=threads, progress=counter("packing pictures")
    )
    return cache.folder, report.unreadable


def _test(run: Run, channels: int) -> Source | None:
    if run.eval_data:
        return open_source(run.eval_data, split="test", channels=channels)
    try:
        found = open_source(run.engine.cache.folder or run.data, split="test", channels=channels)
    except ValueError:  # most folders have no test split: then there is nothing to measure on
        return None
    return found if found.split == "test" else None


def _probe(
    run: Run, method: Method, train: Source, test: Source | None
) -> Callable[[], dict[str, float]] | None:
    if test is None or train.labels is None or test.labels is None:
        return None
    knn = OnlineKnn(
        train,
        test,
        run.backbone.image_size,
        run.normalize,
        batch_size=256,
        threads=run.engine.workers,
    )

    def probe() -> dict[str, float]:
        with gathered(method):
            return {"online_knn": knn(method.kept())}

    return probe


def _keep(run: Run, method: Method, folder: Path) -> None:
    extra = {"method": run.name, "recipe": run.recipe, "seed": run.seed, "data": run.data}
    weights.save_backbone(folder, method.kept(), run.backbone, run.normalize, extra)
