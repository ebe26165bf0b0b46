"""What the commands do once their arguments are read: call the library, show the result."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from . import bench, embedding, evals, exports, pretraining, weights
from .data.source import open_source
from .engine import distributed
from .engine.log import counter
from .evals.features import batches
from .evals.results import Result, write_json
from .run import Run

RESULTS = "results.json"


def run_pretrain(
    run: Run, out: Path, *, resume: bool, overwrite: bool, arguments: list[str]
) -> int:
    """Exit code of a whole pretraining: in this process, or one process per device."""
    pretraining.prepare(run, out, resume=resume, overwrite=overwrite)
    if run.engine.devices > 1 and not distributed.launched():
        return distributed.launch(run.engine.devices, arguments)
    ended = pretraining.pretrain(run, out, resume=resume, overwrite=overwrite)
    if not distributed.first():
        return 0
    _say(ended.verdict)
    if not ended.finished:
        _say(f"interrupted; go on with: saccade pretrain --out {out} --resume")
        return 130
    _say(f"finished in {ended.seconds:.0f} s; the backbone is in {out / 'backbone'}")
    measure(run, out)
    return 0


def measure(run: Run, out: Path) -> list[Result]:
    """Where labels exist: chance, trivial baselines, random weights, and after pretraining."""
    train, test, _ = pretraining.sources(run)
    if test is None or train.labels is None or test.labels is None:
        _say("no labels, so nothing is measured; give --eval-data to see what was learned")
        return []
    _say(f"measuring on {len(test)} labelled test pictures, with {len(train)} to learn from")
    results = evals.trivial(train, test, threads=run.engine.workers, seed=run.seed)
    protocols = ["knn-dino", "linear-dino"] if run.name == "mae" else ["knn-dino"]
    for name, folder in (("random weights", "initial"), ("after pretraining", "backbone")):
        loaded = weights.load(str(out / folder))
        results += evals.evaluate(
            loaded.backbone.to(distributed.device()),
            train,
            test,
            protocols,
            normalize=loaded.normalize,
            name=name,
            threads=run.engine.workers,
            seed=run.seed,
            progress=counter(f"features, {name}"),
        )
    evals.write_results(out / RESULTS, results, {"run": str(out), "data": run.data})
    _show(headlines(results), f"{run.name} on {run.data}: test accuracy")
    return results


def headlines(results: Sequence[Result]) -> list[Result]:
    """The first figure of each protocol of each model: kNN's k = 20, not all its k."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for r in results:
        if (r.model, r.protocol) not in seen:
            seen.add((r.model, r.protocol))
            kept.append(r)
    return kept


def run_evaluate(
    name: str,
    data: str,
    eval_data: str,
    protocols: list[str],
    *,
    limit: int,
    backbone: str,
    image_size: int,
    seed: int,
    workers: int,
    json_out: str,
) -> None:
    loaded = weights.load(name, backbone=backbone, image_size=image_size or None, seed=seed)
    _note(loaded)
    channels = loaded.config.channels
    train = open_source(data, split="train", channels=channels, limit=limit)
    test = open_source(eval_data or data, split="test", channels=channels)
    results = evals.evaluate(
        loaded.backbone.to(distributed.device()),
        train,
        test,
        protocols,
        normalize=loaded.normalize,
        name=name,
        threads=workers,
        seed=seed,
        progress=counter("features"),
    )
    extra = {"weights": name, "data": data, "eval_data": eval_data, "limit": limit}
    if json_out == "-":
        print(json.dumps({**extra, "results": [r.to_dict() for r in results]}, indent=2))
        return
    target = Path(json_out) if json_out else _beside(name)
    if target:
        evals.write_results(target, results, extra)
    _show(results, "")


def run_embed(
    name: str, data: str, out: Path, *, split: str, backbone: str, image_size: int, workers: int
) -> None:
    if split not in ("train", "test"):
        raise ValueError(f"setting split: {split!r} is neither train nor test")
    loaded = weights.load(name, backbone=backbone, image_size=image_size or None)
    _note(loaded)
    source = open_source(data, split=split, channels=loaded.config.channels)  # type: ignore[arg-type]
    preprocess = evals.preprocess_for(loaded.backbone, loaded.normalize)
    model = loaded.backbone.to(distributed.device())
    report = embedding.embed(
        model, source, preprocess, out, name=name, threads=workers, progress=counter("embedded")
    )
    _say(f"{report.rows} pictures of {report.dim} numbers in {out}; {report.skipped} unreadable")


def run_search(table: Path, query: str, top: int) -> None:
    for row in embedding.search(table, query, top):
        print(f"{row['cosine']:.4f}  {row['label'] or '-'}  {row['path']}")


def run_export(
    name: str, format: str, out: Path, data: str, *, backbone: str, image_size: int
) -> None:
    loaded = weights.load(name, backbone=backbone, image_size=image_size or None)
    _note(loaded)
    proof = exports.export(loaded, format, out, pictures_for(loaded, data))
    _say(
        f"{proof.format}: {out}; largest difference {proof.max_difference:.2e} on "
        f"{proof.pictures} pictures ({', '.join(proof.compared)}), allowed {proof.tolerance:.0e}"
    )


def run_bench_step(
    method: str, backbone: str, image_size: int, batch_size: int, rounds: int, json_out: str
) -> None:
    found = bench.run_step(
        method, image_size=image_size, batch_size=batch_size, rounds=rounds, backbone=backbone
    )
    if json_out and json_out != "-":
        write_json(json_out, found)
    if json_out == "-":
        print(json.dumps(found, indent=2))
    else:
        bench.show(found)


def pictures_for(loaded: weights.Loaded, data: str, n: int = 8) -> torch.Tensor:
    """The first pictures of a data set as the backbone wants them, [n, C, H, W]."""
    source = open_source(data, split="train", channels=loaded.config.channels, limit=n)
    preprocess = evals.preprocess_for(loaded.backbone, loaded.normalize)
    return torch.cat([x for x, _ in batches(loaded.backbone, source, preprocess, n, 1, [])])


def _beside(name: str) -> Path | None:
    return Path(name) / RESULTS if Path(name).is_dir() else None


def _note(loaded: weights.Loaded) -> None:
    report = loaded.report
    for what, keys in (("unused", report.unexpected), ("resized", report.resized)):
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            _say(f"{len(keys)} {what} keys in {loaded.source}: {', '.join(keys[:5])}{more}")


def _show(results: Sequence[Result], title: str) -> None:
    from rich.console import Console

    Console().print(evals.table(results, title))


def _say(text: str) -> None:
    print(f"saccade: {text}", file=sys.stderr, flush=True)
