"""The summary of a run in sentences: what was trained, its health, what it beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..engine.health import Health
from ..evals import BASELINES
from ..evals.interval import Interval, paired
from ..evals.results import Result, shown, unpack
from .files import RunFiles

CONTROL = "random weights"  # how results name the same network untrained


@dataclass(frozen=True, slots=True)
class Summary:
    state: str  # a word: finished, training, collapsed
    trained: str
    health: str
    verdicts: list[str]  # a sentence for each figure


def summarize(run: RunFiles) -> Summary:
    health = said_health(run)
    state = "finished" if run.done else "not finished"
    return Summary(
        state="collapsed" if "collapsed" in health else state,
        trained=_trained(run),
        health=health,
        verdicts=verdicts(run),
    )


def _trained(run: RunFiles) -> str:
    c = run.config
    backbone = c.get("backbone", {})
    what = "pretrained without labels" if run.pretraining else "trained on labels"
    start = f", starting from {c['weights']}" if c.get("weights") else ""
    planned = f"{c['steps']} steps" if c.get("steps") else f"{c.get('epochs')} epochs"
    return (
        f"{c.get('name')} (recipe {c.get('recipe')}) {what}: {backbone.get('name')} at "
        f"{backbone.get('image_size')} pixels on {c.get('data')}, {planned}, "
        f"batch size {c.get('batch_size')}, seed {c.get('seed')}{start}. {_progress(run)}"
    )


def _progress(run: RunFiles) -> str:
    if run.done:
        return f"It took {run.done['steps']} steps in {run.done['seconds']:,.0f} s."
    if not run.rows:
        return "It has not reported a step yet."
    last = run.rows[-1]
    return f"It is not finished: the last report is of step {last['step']}."


def said_health(run: RunFiles) -> str:
    """The verdict of the run's end, else what its newest figures say."""
    if not run.pretraining:
        losses = [r["loss"] for r in run.rows if "loss" in r]
        if not losses:
            return "no loss yet"
        return f"loss {losses[0]:.4g} at first, {losses[-1]:.4g} at last"
    if run.done and "verdict" in run.done:
        return str(run.done["verdict"])
    wait = next((r["data_wait"] for r in reversed(run.rows) if "data_wait" in r), 0.0)
    names = ("feature_std", "rankme", "uniformity")
    seen = next((r for r in reversed(run.rows) if all(name in r for name in names)), None)
    warned = [str(r["warning"]) for r in run.rows if "warning" in r]
    shown = (*names, "output_std")
    said = Health(last={k: seen[k] for k in shown if k in seen} if seen else {}).verdict(wait)
    return "; ".join([said, *warned[-1:]])


def subject(results: Sequence[Result]) -> list[Result]:
    """The figures of the trained network: neither random weights nor a trivial baseline."""
    return [r for r in results if r.model not in BASELINES and not untrained(r)]


def untrained(r: Result) -> bool:
    return r.model.startswith((CONTROL, "random:")) or Path(r.model).name == "initial"


def verdicts(run: RunFiles) -> list[str]:
    """A sentence for the first metric of every protocol of the trained network."""
    found: dict[tuple[str, str], str] = {}
    for r in subject(run.results):
        found.setdefault((r.model, r.protocol), _verdict(r, run.results))
    return list(found.values())


def _verdict(r: Result, results: Sequence[Result]) -> str:
    value, low, high = shown(r)
    percent = " %" if r.unit == "%" else ""
    text = f"{r.model}, {r.protocol} {r.metric}: {value}{percent} ({low} to {high}, n {r.n:,})"
    same = [o for o in results if (o.protocol, o.metric) == (r.protocol, r.metric)]
    trivial = [o for o in results if o.model in BASELINES and o.unit == r.unit == "%"]
    others = [*[o for o in same if untrained(o)][:1]]
    others += [max(trivial, key=lambda o: o.value)] if trivial else []
    return "; ".join([text, *(_against(r, o) for o in others)]) + "."


def _against(r: Result, other: Result) -> str:
    name = f"{other.model} ({shown(other)[0]}{' %' if other.unit == '%' else ''})"
    gap = difference(other, r)
    if gap is None:
        return f"beside it {name}, not on the same pictures one by one"
    points = f"{100 * gap.value:+.1f} points ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"
    if gap.low > 0:
        return f"better than {name} by {points}"
    return f"{'worse than' if gap.high < 0 else 'not clearly better than'} {name}: {points}"


def difference(before: Result, after: Result) -> Interval | None:
    """After minus before over the same test pictures; None where these are not the same."""
    alike = [(o.n, o.settings.get("test")) for o in (before, after)]
    if alike[0] != alike[1] or not before.hits or not after.hits:
        return None
    return paired(unpack(before.hits, before.n), unpack(after.hits, after.n))
