"""Is the run well: collapse, non-finite losses, a data path that starves the model.

feature_std: standard deviation of unit features over pictures, times sqrt(D): 1 for features
spread evenly over the sphere, 0 for a constant (Chen & He 2021, arXiv:2011.10566, section 4).
rankme: effective rank of the feature matrix (Garrido et al. 2023, arXiv:2210.02885).
uniformity: 0 for a constant feature, the lower the more even (Wang & Isola 2020, arXiv:2005.10242).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..nn import dist
from ..nn.functional import feature_std, rankme, uniformity

ROWS = 1024  # features that RankMe looks at: the newest ones
COLLAPSED_STD = 0.01
COLLAPSED_RANK = 1.5
STARVED = 0.3  # share of the time spent waiting for data


@dataclass
class Health:
    """Watches features and losses of a run; `verdict` says in words how it stands."""

    kept: list[Tensor] = field(default_factory=list)  # newest features, on the CPU
    last: dict[str, float] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)
    warned: set[str] = field(default_factory=set)

    @torch.no_grad()
    def look(self, features: Tensor | None) -> dict[str, float]:
        """Figures of the newest features over all ranks; empty where a method gives none."""
        if features is None:
            return {}
        rows = dist.gather_frozen(features).float().cpu()
        self.kept = [*self.kept, rows][-max(1, ROWS // len(rows)) :]
        recent = torch.cat(self.kept)
        self.last = {
            "feature_std": feature_std(rows).item(),
            "rankme": rankme(recent).item(),
            "uniformity": uniformity(rows).item(),
        }
        return self.last

    def warnings(self) -> list[str]:
        """Sentences about what has newly gone wrong; each kind is said once."""
        found = {}
        if self.last and self.last["feature_std"] < COLLAPSED_STD:
            found["std"] = (
                f"warning: features are nearly constant (feature_std {self.last['feature_std']:.4f}"
                f" < {COLLAPSED_STD}): the run has collapsed; lower optim.lr or check the teacher"
            )
        if self.last and self.last["rankme"] < COLLAPSED_RANK:
            found["rank"] = (
                f"warning: features span one direction (rankme {self.last['rankme']:.2f}"
                f" < {COLLAPSED_RANK}): the run has collapsed; lower optim.lr or check the teacher"
            )
        new = [text for kind, text in found.items() if kind not in self.warned]
        self.warned |= found.keys()
        return new

    def verdict(self, wait: float) -> str:
        """One sentence for the end of a run; `wait` is the share of time spent on data."""
        if not self.last:
            return "health: this method shows no features"
        std, rank = self.last["feature_std"], self.last["rankme"]
        figures = f"feature_std {std:.3f}, rankme {rank:.1f}"
        if std < COLLAPSED_STD or rank < COLLAPSED_RANK:
            return f"health: collapsed ({figures}); do not use these weights"
        starved = f"; {100 * wait:.0f}% of the time went into waiting for data: raise workers"
        return f"health: no collapse ({figures})" + (starved if wait > STARVED else "")


class FirstBad:
    """The first step with a non-finite loss, remembered on the device: no host sync a step."""

    def __init__(self, device: torch.device) -> None:
        self.step = torch.full((), math.inf, device=device)

    def look(self, loss: Tensor, step: int) -> None:
        here = torch.where(loss.detach().isfinite(), math.inf, float(step))
        self.step = torch.minimum(self.step, here)

    def found(self) -> int | None:
        """The step, agreed over ranks (one host sync)."""
        first = dist.lowest(self.step).item()
        return int(first) if math.isfinite(first) else None
