"""Fine-tuning of a transformer over colors that goes on naming colors.

`finetune-igpt` (Chen et al. 2020): loss = L_colors + L_classes, the classes from the mean over
places of the last norm by a layer without bias that starts at zero. Adam .9, .95, lr 3e-4, constant
(a tenth of the small models' pretraining rate, which the paper searches anew for each data set), no
decay, batch 128; pictures mirrored, padded by an eighth by reflection and cropped back. A tenth of
the training pictures, not trained on, chooses the epoch. The paper gives no number of epochs: 20.
A network that sees all names the colors of hidden pixels (15 %) and the class in one pass over the
same input; in a test nothing is hidden.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import PixelBackbone, View
from ..data.loader import ViewLoader
from ..data.source import Source, Subset
from ..nn.palette import color_loss
from ..nn.random import integers, permutation, uniform
from .features import Data, batches, evaluating, translate
from .finetune import seeded
from .results import Score


@dataclass(frozen=True, kw_only=True)
class Joint:
    """The paper's fine-tuning."""

    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    epochs: int = 20
    batch_size: int = 128
    colors: float = 1.0  # weight of the loss of colors
    mask_ratio: float = 0.15
    held_out: float = 0.1  # share of the training pictures that chooses the epoch


class Classifier(nn.Module):
    """The network, its scores of colors and a layer of classes."""

    def __init__(self, encoder: PixelBackbone, classes: int) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(True)
        self.head = nn.Linear(encoder.dim, classes, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return self.head(self.encoder.encode(self.encoder.tokens(x)).mean(1))

    def loss(
        self, cfg: Joint, x: Float[Tensor, "b c h w"], y: Int[Tensor, "b"], key: Int[Tensor, "b"]
    ) -> Float[Tensor, ""]:
        tokens, hidden = self.encoder.tokens(x), None
        if not self.encoder.causal:
            hidden = uniform(key, tokens[0].numel(), "hidden") < cfg.mask_ratio
            hidden = hidden.view_as(tokens)
        h = self.encoder.encode(tokens, hidden)  # [B, N, D]
        classes = F.cross_entropy(self.head(h.mean(1)), y)
        return classes + cfg.colors * color_loss(self.encoder.scores(h), tokens, hidden)


def run(protocol: str, data: Data) -> Iterator[Score]:
    """Top-1 after the epoch that is best on the held-out training pictures."""
    if not isinstance(data.model, PixelBackbone):
        raise ValueError(
            f"setting protocol: {protocol} is for transformers over colors; choose finetune-mae"
        )
    cfg, n = Joint(), len(data.train)
    epochs, held = data.epochs or cfg.epochs, max(1, round(cfg.held_out * n))
    order = permutation(n, data.seed, 0).numpy()
    size = min(cfg.batch_size, n - held)
    if size < 1:
        raise ValueError(f"setting data: {protocol} needs 2 labels or more; give more pictures")
    device = next(data.model.parameters()).device
    loader = ViewLoader(
        Subset(data.train, order[held:]),
        (mirrored(data.preprocess.size),),
        data.preprocess.normalize,
        batch_size=size,
        seed=data.seed,
        threads=data.threads,
        device=device,
    )
    with seeded(data.seed):
        model = Classifier(data.model, data.classes).to(device)
        best, known = train(cfg, model, data, loader, Subset(data.train, order[:held]), epochs)
    settings = asdict(cfg) | {"epochs": epochs, "batch_size": size, "labels": n - held}
    settings |= {"epoch": best, "known": known}
    yield Score("top1", answers(model, data, data.test), settings)


def train(
    cfg: Joint, model: Classifier, data: Data, loader: ViewLoader, judge: Source, epochs: int
) -> tuple[int, float]:
    """All epochs, then the weights of the best one: its number, and what it knew."""
    optimizer = torch.optim.Adam(model.parameters(), cfg.lr, cfg.betas)
    best, most, kept = 0, -1.0, {}
    for epoch in range(epochs):
        model.train()
        with closing(loader.batches(epoch)) as stream:
            for batch in stream:
                assert batch.labels is not None
                x = shifted(batch.images[0], batch.key)
                optimizer.zero_grad()
                model.loss(cfg, x, batch.labels, batch.key).backward()
                optimizer.step()
        known = float(answers(model, data, judge).mean())
        if known > most:
            best, most, kept = epoch, known, copy.deepcopy(model.state_dict())
        data.progress(epoch + 1, epochs)
    model.load_state_dict(kept)
    return best, most


def mirrored(size: int) -> View:
    return View(
        size=size,
        crop=(1.0, 1.0),
        ratio=(1.0, 1.0),
        interpolation="bicubic",
        jitter=0.0,
        grayscale=0.0,
        blur=0.0,
    )


def shifted(x: Float[Tensor, "b c h w"], key: Int[Tensor, "b"]) -> Float[Tensor, "b c h w"]:
    """Pictures with an eighth of their side added all around by reflection, cropped at random."""
    height, width = x.shape[-2:]
    margin = width // 8
    wide = F.pad(x, (margin,) * 4, mode="reflect")
    places = integers(key, 2, 2 * margin + 1, "shift").tolist()
    cut = [w[:, i : i + height, j : j + width] for w, (i, j) in zip(wide, places, strict=True)]
    return torch.stack(cut)


def answers(model: Classifier, data: Data, source: Source) -> np.ndarray:
    """Which pictures the classifier names rightly."""
    assert source.labels is not None
    own, right = translate(data.train.classes, source.classes), []
    with evaluating(model):
        for x, index in batches(
            data.model, source, data.preprocess, data.batch_size, data.threads, []
        ):
            truth = own[torch.from_numpy(source.labels)[index]]
            right.append(model(x).argmax(1).cpu() == truth)
    return torch.cat(right).numpy()
