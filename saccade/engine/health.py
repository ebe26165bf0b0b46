"""Is the run well: collapse, non-finite losses, a data path that starves the model.

feature_std: standard deviation of unit features over pictures, times sqrt(D): 1 for features
spread evenly over the sphere, 0 for a constant (Chen & He 2021, arXiv:2011.10566, section 4).
rankme: effective rank of the feature matrix (Garrido et al. 2023, arXiv:2210.02885).
uniformity: 0 for a constant feature, the lower the more even (Wang & Isola 2020, arXiv:2005.10242).
output_std: root mean square distance of unit vectors from their mean, of what a method's loss
compares, projections or a teacher's probabilities: 0 for a constant, 1 far apart. It falls long
before the features of a network with batch norm do, and counts where it is low twice in a row. A
teacher's probabilities that hardly use a prototype are on their way there: the limit is higher.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ..nn import dist
from ..nn.functional import deviation, feature_std, rankme, uniformity

ROWS = 1024  # features that RankMe looks at: the newest ones
COLLAPSED_STD = 0.01
COLLAPSED_RANK = 1.5
COLLAPSED_OUTPUT = 0.05
FEW, FEW_OUTPUT = 0.05, 0.15  # share of prototypes in use below which the limit is the second
STARVED = 0.3  # share of the time spent waiting for data


@dataclass
class Health:
    """Watches features and losses of a run; `verdict` says in words how it stands."""

    remedy: str = "lower optim.lr"
    kept: list[Tensor] = field(default_factory=list)  # newest features, on the CPU
    last: dict[str, float] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)
    warned: set[str] = field(default_factory=set)
    low: int = 0  # looks in a row that found outputs nearly constant
    limit: float = COLLAPSED_OUTPUT  # of these outputs

    @torch.no_grad()
    def look(self, features: Tensor | None, outputs: Tensor | None = None) -> dict[str, float]:
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
        if outputs is not None:
            compared = dist.gather_frozen(outputs).float()
            spread = deviation(compared).item()
            self.last["output_std"] = spread
            self.limit = FEW_OUTPUT if used(compared) < FEW else COLLAPSED_OUTPUT
            self.low = self.low + 1 if spread < self.limit else 0
        return self.last

    def warnings(self) -> list[str]:
        """Sentences about what has newly gone wrong; each kind is said once."""
        new = [(name, words) for name, words in self._collapsed() if name not in self.warned]
        self.warned |= {name for name, _ in new}
        return [f"warning: {words}: the run has collapsed; {self.remedy}" for _, words in new]

    def verdict(self, wait: float) -> str:
        """One sentence for the end of a run; `wait` is the share of time spent on data."""
        if not self.last:
            return "health: this method shows no features"
        figures = f"feature_std {self.last['feature_std']:.3f}, rankme {self.last['rankme']:.1f}"
        if "output_std" in self.last:
            figures += f", output_std {self.last['output_std']:.3f}"
        if self._collapsed():
            return f"health: collapsed ({figures}); do not use these weights: {self.remedy}"
        starved = f"; {100 * wait:.0f}% of the time went into waiting for data: raise workers"
        return f"health: no collapse ({figures})" + (starved if wait > STARVED else "")

    def _collapsed(self) -> list[tuple[str, str]]:
        """Figures below their limits, and what that means."""
        limits = (
            ("feature_std", COLLAPSED_STD, "features are nearly constant"),
            ("rankme", COLLAPSED_RANK, "features span one direction"),
            ("output_std", self.limit, "what the loss compares is nearly constant"),
        )
        return [
            (name, f"{words} ({name} {self.last[name]:.4f} < {limit})")
            for name, limit, words in limits
            if self.last.get(name, limit) < limit and (name != "output_std" or self.low > 1)
        ]


def used(p: Float[Tensor, "n k"]) -> float:
    """Share of columns in use, by the entropy of the mean row; 1 for rows not of probabilities."""
    if bool((p < 0).any()) or bool(((p.sum(1) - 1).abs() > 1e-3).any()):
        return 1.0
    return float(torch.special.entr(p.mean(0)).sum().exp()) / p.shape[1]


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
