"""Fine-tuning: the whole network is trained on labels, with the schedule of one paper.

`semi-1`, `semi-10` (SwAV, Caron et al. 2020, arXiv:2006.09882): 1 or 10 % of the labels, 20 epochs,
batch 256, SGD .9, trunk lr .02 or .01, head lr 5 or .2, x .2 at 60 and 80 %, no weight decay.
`finetune-mae` (He et al. 2021, arXiv:2111.06377, ViT-B of the official code): AdamW, lr 5e-4 x
B/256, layer decay .65, weight decay .05 but on vectors, positions and CLS, 5 epochs of warm-up,
half a cosine to 1e-6, 100 epochs, batch 1024, drop path .1, RandAugment (2 operations at 9, +-.5),
mixup .8, CutMix 1, label smoothing .1, random erasing .25; on the mean patch token through a new
norm in place of the network's last. `finetune-mae-l` and `-h`, for ViT-L and ViT-H: lr 1e-3, layer
decay .75, 50 epochs, drop path .2 and .3. These are for weights of `norm_pix_loss`; the article's
table 9, for those of plain pixels, has lr 1e-3 and layer decay .75 for all sizes.
`finetune-dino` and `finetune-moco` (the DeiT schedule that both papers name, Touvron et al. 2020,
arXiv:2012.12877; MoCo v3, Chen et al. 2021, arXiv:2104.02057): AdamW, lr 5e-4 x B/512, no layer
decay, half a cosine to 1e-5, 300 and 150 epochs, else as MAE's; on the network's pooled vector.
All: random resized crop and flip, accuracy after the last epoch.

Deviations: RandAugment interpolates bilinearly (the papers: bicubic), and is for pictures of 3
channels alone. Batches are not larger than the data. SwAV's script reports its best epoch and has
its own lists of pictures; these are balanced over classes and the same for everybody
(`data/balanced.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.drop import DropPath
from torch import Tensor, nn

from ..backbones.timm_state import timm_net
from ..core import Backbone, PatchBackbone, StrongSet, View
from ..data.balanced import balanced, write_list
from ..data.loader import ViewLoader
from ..data.source import Subset
from ..engine.schedules import lr_at
from ..nn.layers import numbered
from ..nn.mixing import erased, mixed, soft, soft_cross_entropy
from ..recipe import Optim, Schedule, scaled_lr
from .features import Data, batches, evaluating, translate
from .results import Score

# Endings of names of tables and tokens that do not decay.
SPARED = ("pos_embed", "cls_token", "reg_token", "relative_position_bias_table")


@dataclass(frozen=True, kw_only=True)
class FineTune:
    """One paper's fine-tuning."""

    optim: Optim
    epochs: int
    batch_size: int
    head_lr: float = 0.0  # of the classifier; 0: as the trunk
    drop: float = 0.1  # what `steps` multiplies by
    share: float = 1.0  # of the labels, balanced over classes
    layer_decay: float = 1.0
    drop_path: float = 0.0
    mix: bool = False  # RandAugment, mixup .8 or CutMix 1, smoothing .1, random erasing .25
    mean_pool: bool = False  # mean patch token through a new norm


def _semi(share: float, trunk: float, head: float) -> FineTune:
    schedule = Schedule(shape="steps", drops=(0.6, 0.8), per="epoch")
    optim = Optim(lr=trunk, lr_rule="none", weight_decay=0.0, schedule=schedule)
    return FineTune(optim=optim, epochs=20, batch_size=256, head_lr=head, drop=0.2, share=share)


def _adamw(rule: str, final_lr: float, lr: float = 5e-4) -> Optim:
    schedule = Schedule(warmup_epochs=5.0, final_lr=final_lr)
    return Optim(name="adamw", lr=lr, lr_rule=rule, weight_decay=0.05, schedule=schedule)  # type: ignore[arg-type]


def _mae(epochs: int, lr: float, layer_decay: float, drop_path: float) -> FineTune:
    return FineTune(
        optim=_adamw("linear-256", 1e-6, lr),
        epochs=epochs,
        batch_size=1024,
        layer_decay=layer_decay,
        drop_path=drop_path,
        mix=True,
        mean_pool=True,
    )


PROTOCOLS = {
    "semi-1": _semi(0.01, 0.02, 5.0),
    "semi-10": _semi(0.1, 0.01, 0.2),
    "finetune-mae": _mae(100, 5e-4, 0.65, 0.1),
    "finetune-mae-l": _mae(50, 1e-3, 0.75, 0.2),
    "finetune-mae-h": _mae(50, 1e-3, 0.75, 0.3),
    "finetune-dino": FineTune(
        optim=_adamw("linear-512", 1e-5), epochs=300, batch_size=1024, drop_path=0.1, mix=True
    ),
    "finetune-moco": FineTune(
        optim=_adamw("linear-512", 1e-5), epochs=150, batch_size=1024, drop_path=0.1, mix=True
    ),
}


class Classifier(nn.Module):
    """A backbone and a linear layer."""

    def __init__(self, backbone: Backbone, classes: int, mean_pool: bool, std: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.mean_pool = mean_pool
        self.norm = nn.LayerNorm(backbone.dim, eps=1e-6) if mean_pool else nn.Identity()
        self.head = nn.Linear(backbone.dim, classes)
        nn.init.trunc_normal_(self.head.weight, std=std)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        if not self.mean_pool:
            return self.head(self.backbone(x))
        return self.head(self.norm(self.backbone.features(x).mean((2, 3))))


def run(protocol: str, data: Data) -> Iterator[Score]:
    """Top-1 after the last epoch, on all test pictures that can be read."""
    cfg = PROTOCOLS[protocol]
    epochs = data.epochs or cfg.epochs
    labels = data.train.labels
    assert labels is not None
    rows = balanced(labels, share=cfg.share, seed=data.seed)
    if cfg.share < 1 and data.lists is not None:
        write_list(data.lists / f"{protocol}-seed{data.seed}.txt", data.train, rows)
    size = min(cfg.batch_size, len(rows))
    if size < 2:
        raise ValueError(f"setting data: {protocol} needs 2 labels or more; give more pictures")
    loader = ViewLoader(
        Subset(data.train, rows),
        (view(cfg, data),),
        data.preprocess.normalize,
        batch_size=size,
        seed=data.seed,
        threads=data.threads,
        device=next(data.model.parameters()).device,
    )
    with seeded(data.seed):
        model = build(cfg, data.model, data.classes)
        train(cfg, model, data, loader, epochs)
    settings = asdict(cfg) | {"epochs": epochs, "batch_size": size, "labels": len(rows)}
    yield Score("top1", answers(model, data), settings)


def view(cfg: FineTune, data: Data) -> View:
    """Random resized crop and flip, and RandAugment where the paper augments more."""
    more = StrongSet(name="increasing", magnitude=9.0)
    return View(
        size=data.preprocess.size,
        interpolation="bicubic",
        jitter=0.0,
        grayscale=0.0,
        blur=0.0,
        strong=more if cfg.mix and data.train.channels == 3 else StrongSet(),
    )


def build(cfg: FineTune, backbone: Backbone, classes: int) -> Classifier:
    """A copy of the backbone under a new classifier; the given one stays as it is."""
    own = copy.deepcopy(backbone).requires_grad_(True)
    mean_pool = cfg.mean_pool and isinstance(own, PatchBackbone)
    if mean_pool:
        net: Any = timm_net(own)
        net.norm = net.fc_norm = nn.Identity()  # a network has one of them
    if cfg.drop_path:
        drop_paths(own, cfg.drop_path)
    std = 2e-5 if cfg.layer_decay < 1 else 0.01 if cfg.optim.name == "sgd" else 0.02
    return Classifier(own, classes, mean_pool, std).to(next(backbone.parameters()).device)


def drop_paths(net: nn.Module, most: float) -> None:
    """Stochastic depth in timm's places for it, growing from 0 to `most` with depth."""
    places = [n for n, _ in net.named_modules() if n.rpartition(".")[2].startswith("drop_path")]
    blocks = list(dict.fromkeys(n.rpartition(".")[0] for n in places))
    for name in places:
        block = name.rpartition(".")[0]
        rate = most * blocks.index(block) / max(len(blocks) - 1, 1)
        setattr(net.get_submodule(block), name.rpartition(".")[2], DropPath(rate))


def groups(cfg: FineTune, model: Classifier) -> list[dict]:
    """Parameters by learning rate and decay, with `lr_scale` and whether they are the head."""
    scale = {id(p): 1.0 for p in model.parameters()}
    if cfg.layer_decay < 1:
        layers = numbered(n for n, _ in model.backbone.named_parameters())
        top = max(layers.values()) + model.mean_pool  # the new norm stands for the old one
        for name, layer in layers.items():
            scale[id(model.backbone.get_parameter(name))] = cfg.layer_decay ** (top - layer)
    head = {id(p) for p in model.head.parameters()}
    found: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            flat = p.ndim <= 1 or name.endswith(SPARED)
            found.setdefault((scale[id(p)], flat, id(p) in head), []).append(p)
    decay = cfg.optim.weight_decay
    return [
        {"params": ps, "lr_scale": s, "head": h, "weight_decay": 0.0 if flat else decay}
        for (s, flat, h), ps in found.items()
    ]


def train(cfg: FineTune, model: Classifier, data: Data, loader: ViewLoader, epochs: int) -> None:
    """The paper's schedule over all its epochs, in place."""
    optimizer = _optimizer(cfg, model)
    step, steps = 0, epochs * loader.steps
    model.train()
    for epoch in range(epochs):
        with closing(loader.batches(epoch)) as stream:
            for batch in stream:
                rates(cfg, optimizer, loader.batch_size, step, steps, loader.steps)
                x, y = batch.images[0], batch.labels
                assert y is not None
                if cfg.mix:
                    x, target = mixed(erased(x, 0.25), soft(y, data.classes, 0.1), 0.8, 1.0)
                    loss = soft_cross_entropy(model(x), target)
                else:
                    loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
        data.progress(epoch + 1, epochs)


def _optimizer(cfg: FineTune, model: Classifier) -> torch.optim.Optimizer:
    if cfg.optim.name == "adamw":
        return torch.optim.AdamW(groups(cfg, model), betas=cfg.optim.betas)
    return torch.optim.SGD(groups(cfg, model), momentum=cfg.optim.momentum)


def rates(
    cfg: FineTune, optimizer: torch.optim.Optimizer, size: int, step: int, steps: int, epoch: int
) -> None:
    """Learning rates of a step."""
    peak = scaled_lr(cfg.optim.lr, cfg.optim.lr_rule, size)
    if cfg.optim.schedule.shape == "steps":
        start = step // epoch * epoch
        now = peak * cfg.drop ** sum(start >= d * steps for d in cfg.optim.schedule.drops)
    else:
        now = lr_at(cfg.optim, size, step, steps, epoch)
    for group in optimizer.param_groups:
        own = now * cfg.head_lr / peak if group["head"] and cfg.head_lr else now
        group["lr"] = own * group["lr_scale"]


def answers(model: Classifier, data: Data) -> np.ndarray:
    """Which test pictures the classifier names rightly."""
    labels = data.test.labels
    assert labels is not None
    own = translate(data.train.classes, data.test.classes)
    right = []
    with evaluating(model):
        for x, index in batches(
            data.model, data.test, data.preprocess, data.batch_size, data.threads, []
        ):
            truth = own[torch.from_numpy(labels)[index]]
            right.append(model(x).argmax(1).cpu() == truth)
    return torch.cat(right).numpy()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global generator at this seed and then back."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
