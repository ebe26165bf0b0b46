"""What the commands do once their arguments are read: call the library, show the result."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from . import (
    config,
    embedding,
    evals,
    evaluation,
    exports,
    methods,
    predicting,
    pretraining,
    reproduction,
    searching,
    training,
    verdict,
    weights,
)
from .bench import attention as attention_bench
from .bench import data as data_bench
from .bench import evals as evals_bench
from .bench import step as step_bench
from .data import packing
from .data.source import open_source
from .engine import distributed
from .engine.log import counter
from .evals import comparison
from .evals.features import batches
from .evals.results import Result, write_json
from .recipe import Cache
from .run import Run, TrainRun

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


def run_train(
    run: TrainRun, out: Path, *, resume: bool, overwrite: bool, arguments: list[str]
) -> int:
    """Exit code of a whole training: in this process, or one process per device."""
    training.prepare(run, out, resume=resume, overwrite=overwrite)
    if run.engine.devices > 1 and not distributed.launched():
        return distributed.launch(run.engine.devices, arguments)
    ended = training.train(run, out, resume=resume, overwrite=overwrite)
    if not distributed.first():
        return 0
    if not ended.finished:
        _say(f"interrupted; go on with: saccade train {run.name} {run.data} --out {out} --resume")
        return 130
    _say(f"finished in {ended.seconds:.0f} s; the system is in {out}")
    results = training.measure(out)
    if not results:
        _say("no test data, so nothing is measured; give --eval-data to see what was learned")
        return 0
    evals.write_results(out / RESULTS, results, {"run": str(out), "data": run.data})
    _show(results, f"{run.name} on {run.eval_data or run.data}")
    return 0


def run_predict(run: Path, pictures: str, out: Path, sets: list[str]) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"setting out: {out} is not empty; choose another folder")
    for one in predicting.predict(run, pictures, out, sets):
        _say(f"left out {one.name}: {one.reason}")
    _say(f"predictions are in {out}")


def measure(run: Run, out: Path) -> list[Result]:
    """Where labels exist: chance, trivial baselines, random weights, and after pretraining."""
    train, test, _ = pretraining.sources(run)
    if test is None or train.labels is None or test.labels is None:
        _say("no labels, so nothing is measured; give --eval-data to see what was learned")
        return []
    _say(f"measuring on {len(test)} labelled test pictures, with {len(train)} to learn from")
    results = evals.trivial(train, test, threads=run.engine.workers, seed=run.seed)
    family, _ = methods.FACTS.get(run.name, ("", ""))
    protocols = ["knn-dino", "linear-dino"] if family == "masks" else ["knn-dino"]
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


def run_evaluate(request: evaluation.Request, *, json_out: str, plot: str) -> None:
    results = evaluation.evaluate(request, evaluation.say)
    compared = evals.compare(results, request.weights[0], request.seed)
    extra = {
        "weights": request.weights[0],
        "compare": list(request.weights[1:]),
        "data": request.data,
        "eval_data": request.eval_data,
        "limit": request.limit,
        "comparisons": [c.to_dict() for c in compared],
    }
    if plot:
        comparison.plot(headlines(results), Path(plot))
    if json_out == "-":
        print(json.dumps({**extra, "results": [r.to_dict() for r in results]}, indent=2))
        return
    target = Path(json_out) if json_out else _beside(request.weights[0])
    if target:
        evals.write_results(target, results, extra)
    _show(results, "")
    others = [c for c in compared if c.model in request.weights]
    if others:
        Console().print(comparison.table(others))


def run_verdict(
    names: tuple[str, ...],
    data: str,
    labels: str,
    *,
    eval_data: str,
    seeds: int,
    steps: int,
    workers: int,
    plot: str,
    json_out: str,
) -> None:
    try:
        counts = tuple(sorted({int(n) for n in labels.split(",")}))
    except ValueError:
        raise ValueError(
            f"setting labels: {labels!r} are no whole numbers; give some like 100,1000"
        ) from None
    question = verdict.Question(
        weights=names,
        data=data,
        labels=counts,
        eval_data=eval_data,
        seeds=seeds,
        steps=steps,
        workers=workers,
    )
    found = verdict.ask(question)
    if plot:
        verdict.plot(found, Path(plot))
    if json_out == "-":
        print(json.dumps(found.to_dict(), indent=2))
        return
    folder = Path(names[0]) if Path(names[0]).is_dir() else None
    if json_out or folder:
        write_json(Path(json_out) if json_out else folder / "verdict.json", found.to_dict())  # type: ignore[operator]
    Console().print(verdict.table(found))
    _say(found.sentence)


def run_embed(
    name: str,
    data: str,
    out: Path,
    *,
    split: str,
    index: bool,
    backbone: str,
    image_size: int,
    workers: int,
) -> None:
    if split not in ("train", "test"):
        raise ValueError(f"setting split: {split!r} is neither train nor test")
    loaded = weights.load(name, backbone=backbone, image_size=image_size or None)
    evaluation.say(loaded)
    source = open_source(data, split=split, channels=loaded.config.channels)  # type: ignore[arg-type]
    preprocess = evals.preprocess_for(loaded.backbone, loaded.normalize)
    model = loaded.backbone.to(distributed.device())
    report = embedding.embed(
        model,
        source,
        preprocess,
        out,
        name=name,
        data=data,
        threads=workers,
        progress=counter("embedded"),
    )
    _say(f"{report.rows} pictures of {report.dim} numbers in {out}; {report.skipped} unreadable")
    if index:
        _say(f"the index is in {searching.build_index(out, counter('indexed'))}")


def run_search(
    table: Path,
    query: str,
    name: str,
    top: int,
    *,
    exact: bool,
    plot: str,
    data: str,
    json_out: str,
) -> None:
    rows = searching.search(table, query, top=top, name=name, exact=exact)
    if plot:
        searching.sheet(table, query, rows, data).save(plot)
    if json_out == "-":
        print(json.dumps(rows, indent=2))
        return
    if json_out:
        write_json(json_out, {"query": query, "table": str(table), "found": rows})
    for row in rows:
        print(f"{row['cosine']:.4f}  {row['label'] or '-'}  {row['path']}")


def run_export(
    name: str, format: str, out: Path, data: str, *, backbone: str, image_size: int
) -> None:
    loaded = weights.load(name, backbone=backbone, image_size=image_size or None)
    evaluation.say(loaded)
    proof = exports.export(loaded, format, out, pictures_for(loaded, data))
    _say(
        f"{proof.format}: {out}; largest difference {proof.max_difference:.2e} on "
        f"{proof.pictures} pictures ({', '.join(proof.compared)}), allowed {proof.tolerance:.0e}"
    )


def run_reproduce(
    study: str,
    data: str,
    out: Path,
    *,
    seeds: int,
    seen: int,
    pictures: int,
    precision: str,
    plot: str,
    json_out: str,
) -> None:
    found = reproduction.reproduce(
        study, data, out, seeds=seeds, seen=seen, pictures=pictures, precision=precision
    )
    if plot:
        reproduction.plot(found, Path(plot))
    if json_out == "-":
        print(json.dumps(reproduction.to_dict(found), indent=2))
        return
    write_json(Path(json_out) if json_out else out / RESULTS, reproduction.to_dict(found))
    for table in reproduction.tables(found):
        Console().print(table)
    _say(found.sentence)


def run_pack(
    data: str,
    out: Path,
    *,
    size: int,
    format: str,
    quality: int,
    channels: int,
    workers: int,
    json_out: str,
) -> None:
    values = {"folder": str(out), "size": size, "format": format, "quality": quality}
    cache = config.from_dict(Cache, values)
    told = counter("packed")
    report = packing.pack(data, cache, channels=channels, threads=workers, progress=told)

    def show(found: dict[str, Any]) -> None:
        for one in report.unreadable:
            _say(f"left out {one.name}: {one.reason}")
        _say(f"{report.pictures} pictures in {out}, {report.bytes / 2**20:.1f} MiB")

    _deliver(asdict(report), json_out, show)


def run_bench_step(
    method: str,
    backbone: str,
    image_size: int,
    batch_size: int,
    rounds: int,
    recipe: str,
    json_out: str,
    *,
    images: int = 0,
) -> None:
    settings: dict[str, Any] = {
        "images": images,
        "image_size": image_size,
        "batch_size": batch_size,
        "rounds": rounds,
        "backbone": backbone,
        "recipe": recipe,
    }
    if "," in method:
        found = step_bench.run_steps(method.split(","), **settings)
        _deliver(found, json_out, step_bench.show_steps)
    else:
        _deliver(step_bench.run_step(method, **settings), json_out, step_bench.show)


def run_bench_attention(
    sizes: str,
    channels: int,
    batch_size: int,
    rounds: int,
    plot: str,
    json_out: str,
    *,
    peers: bool = False,
) -> None:
    found = attention_bench.run_attention(
        sizes=_whole(sizes),
        channels=channels,
        batch_size=batch_size,
        rounds=rounds,
        beside=peers,
    )
    if plot:
        attention_bench.plot(found, Path(plot))
    _deliver(found, json_out, attention_bench.show)


def _whole(sizes: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in sizes.split(","))
    except ValueError:
        raise ValueError(f"setting sizes: {sizes!r}; give whole numbers, such as 8,16") from None


def run_bench_data(
    data: str,
    views: str,
    threads: int,
    pictures: int,
    rounds: int,
    image_size: int,
    json_out: str,
) -> None:
    found = data_bench.run_data(
        data,
        views=views,
        threads=threads,
        pictures=pictures,
        rounds=rounds,
        image_size=image_size,
    )
    _deliver(found, json_out, data_bench.show)


def run_bench_eval(
    protocol: str, bank: int, queries: int, dim: int, classes: int, rounds: int, json_out: str
) -> None:
    found = evals_bench.run_evals(
        tuple(protocol.split(",")),
        bank=bank,
        queries=queries,
        dim=dim,
        classes=classes,
        rounds=rounds,
    )
    _deliver(found, json_out, evals_bench.show)


def pictures_for(loaded: weights.Loaded, data: str, n: int = 8) -> torch.Tensor:
    """The first pictures of a data set as the backbone wants them, [n, C, H, W]."""
    source = open_source(data, split="train", channels=loaded.config.channels, limit=n)
    preprocess = evals.preprocess_for(loaded.backbone, loaded.normalize)
    return torch.cat([x for x, _ in batches(loaded.backbone, source, preprocess, n, 1, [])])


def _deliver(found: dict[str, Any], json_out: str, show: Callable[[dict[str, Any]], None]) -> None:
    if json_out and json_out != "-":
        write_json(json_out, found)
    if json_out == "-":
        print(json.dumps(found, indent=2))
    else:
        show(found)


def _beside(name: str) -> Path | None:
    return Path(name) / RESULTS if Path(name).is_dir() else None


def _show(results: Sequence[Result], title: str) -> None:
    Console().print(evals.table(results, title))


def _say(text: str) -> None:
    print(f"saccade: {text}", file=sys.stderr, flush=True)
