"""PixPro: cells of two crops that show the same spot agree, one of them smoothed by its like.

Xie et al. 2021, arXiv:2011.10043. z_i are unit projections of the cells of a map, z'_j those of the
other view by the averaged network. One side goes through the pixel propagation module,
    y_i = unit( sum_j max(z_i.z_j, 0)^gamma g(z_j) ),   j over all cells of the same view,
and with A_ij = 1 where cells i and j lie closer in the picture than `threshold` cell diagonals,
    loss = -2 mean over images of sum_ij A_ij y_i.z'_j / sum_ij A_ij, both directions: in [-4, 4].
A pair of crops that do not meet counts as 0. The average moves with momentum from m to 1 along half
a cosine, before the keys of the next step, as in the official code; a resumed run goes on where it
stood, where the official one starts at m again. The loss falls at once and then rises slowly, so
watch `spread`.

As in the official code and not the paper: hidden 4096, unit g(z_j) (`unit_transform=False` for the
paper's), twice the paper's loss, a threshold that is not reached by equality. `instance` adds a
loss of whole images, which classification needs: `byol` is the official branch, `simclr` the
paper's contrast with keys of a slow network, whose temperature of .2 is ours. Places are shares of
the picture's sides, whose units differ where it is not square, as in the official code; that one
divides by sides less one pixel, which moves pairs at the border of the threshold. Places in pixels
are left out: a batch does not know the pictures' sizes.

`pyramid` pretrains a detector's pyramid of that width over all stages but the first, `tower`
convolutions that its levels share (its proposal head has 1): each level has the loss above, their
mean counts, and the run leaves heads.safetensors for `saccade train detect`. The affinities of the
finest level take B N^2 numbers, N = 784 at 224 pixels. The levels share one projector: our choice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork

from ..core import Backbone, Clock, Method, StagedBackbone, Step, View, Views
from ..nn.dist import gather_frozen, rank
from ..nn.functional import cosine_ramp, feature_std, similarity
from ..nn.parts import Ema, pixel_mlp, without_drop_path
from ..nn.pixels import bin_distances, cells
from ..recipe import BackboneConfig, Optim, Recipe, Schedule

COLOR = (0.4, 0.4, 0.2, 0.1)
INSTANCE_TEMPERATURE = 0.2


class Neck(nn.Module):
    """A detector's pyramid over maps of several stages, and convolutions its levels share."""

    def __init__(self, widths: tuple[int, ...], width: int, tower: int) -> None:
        super().__init__()
        self.fpn = FeaturePyramidNetwork(list(widths), width, norm_layer=nn.BatchNorm2d)
        self.tower = nn.Sequential(
            *(Conv2dNormActivation(width, width, norm_layer=None) for _ in range(tower))
        )

    def forward(self, maps: list[Float[Tensor, "b _ _ _"]]) -> list[Float[Tensor, "b d _ _"]]:
        levels = self.fpn(OrderedDict((str(i), y) for i, y in enumerate(maps)))
        return [self.tower(y) for y in levels.values()]


class PixPro(Method[Backbone]):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 4096
        dim: int = 256
        gamma: float = 2.0
        threshold: float = 0.7  # diagonals of a cell
        layers: Literal[0, 1, 2] = 1  # of g
        unit_transform: bool = True  # g(z_j) made unit vectors
        momentum: float = 0.99  # at the start; 1 at the end
        instance: Literal["none", "byol", "simclr"] = "none"
        instance_weight: float = 1.0
        pyramid: int = 0  # channels; 0: the loss is that of the last map
        tower: int = 0  # convolutions behind the pyramid
        views: tuple[View, ...] = (
            View(strength=COLOR, blur=1.0),
            View(strength=COLOR, blur=0.1, solarize=0.2),
        )

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        check(cfg.views)
        self.cfg = cfg
        self.additive = cfg.instance != "simclr"
        self.encoder = encoder
        self.neck = neck(cfg, encoder)
        width = cfg.pyramid or encoder.dim
        self.projector = pixel_mlp(width, cfg.hidden, cfg.dim)
        self.transform = transform(cfg.layers, cfg.dim)
        self.instance, self.predictor = None, None
        if cfg.instance != "none":
            self.instance = pixel_mlp(encoder.dim, cfg.hidden, cfg.dim)
        if cfg.instance == "byol":
            self.predictor = pixel_mlp(cfg.dim, cfg.hidden, cfg.dim)
        self.teacher = Ema(encoder)
        without_drop_path(self.teacher)
        self.teacher_projector = Ema(self.projector)
        self.teacher_neck = None if self.neck is None else Ema(self.neck)
        self.teacher_instance = None if self.instance is None else Ema(self.instance)

    def forward(self, batch: Views, clock: Clock) -> Step:
        first, second = (look(self.encoder, self.neck, x) for x in batch.images)
        teacher_neck = None if self.teacher_neck is None else self.teacher_neck.module
        with torch.no_grad():
            one, two = (look(self.teacher.module, teacher_neck, x) for x in batch.images)
        losses, pairs, compared = [], [], []
        for a, b, k_a, k_b in zip(first.levels, second.levels, one.levels, two.levels, strict=True):
            y_a, y_b = self.propagate(self.projector(a)), self.propagate(self.projector(b))
            z_a, z_b = cells(self.teacher_projector(k_a)), cells(self.teacher_projector(k_b))
            near = self.near(batch, (a.shape[-2], a.shape[-1]))  # [B, N, N]
            losses.append(agreement(y_a, z_b, near) + agreement(y_b, z_a, near.mT))
            pairs.append(near.float().sum((1, 2)).mean())
            compared.append(z_a.flatten(0, 1))
        loss = torch.stack(losses).mean()
        stds = torch.stack([feature_std(z) for z in compared])
        logs = {"spread": stds.mean(), "pairs": torch.stack(pairs).mean()}
        if self.instance is not None:
            whole = self.whole(first.last, two.last) + self.whole(second.last, one.last)
            loss = loss + self.cfg.instance_weight * whole
            logs["instance_loss"] = whole.detach()
        return Step(loss, logs, first.last.detach().mean((2, 3)), compared[0])

    @torch.no_grad()
    def near(self, batch: Views, grid: tuple[int, int]) -> Bool[Tensor, "b n n"]:
        """Which cell of the second view is a positive of which cell of the first."""
        boxes, flips = batch.boxes, batch.flips
        apart = bin_distances((boxes[0], boxes[1]), (flips[0], flips[1]), grid)
        return apart < self.cfg.threshold

    def propagate(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b n d"]:
        """Each cell as a mean of what g makes of all, weighted by how alike they are."""
        g = self.transform(x).flatten(2).mT.float()
        g = F.normalize(g, dim=-1) if self.cfg.unit_transform else g
        z = cells(x)
        with torch.autocast(x.device.type, enabled=False):
            alike = (z @ z.mT).clamp_min(0)
            if self.cfg.gamma < 1:
                alike = alike + 1e-6  # the gradient of 0^gamma
            return F.normalize(alike**self.cfg.gamma @ g, dim=-1)

    def whole(
        self, h: Float[Tensor, "b d h w"], target: Float[Tensor, "b d h w"]
    ) -> Float[Tensor, ""]:
        """The loss of whole images in one direction."""
        assert self.instance is not None
        assert self.teacher_instance is not None
        z = F.normalize(self.teacher_instance(target).mean((2, 3)).float(), dim=-1)  # [B, D]
        q = self.instance(h)
        q = q if self.predictor is None else self.predictor(q)
        q = F.normalize(q.mean((2, 3)).float(), dim=-1)
        if self.cfg.instance == "byol":
            return -2 * (q * z).sum(-1).mean()
        own = rank() * len(q) + torch.arange(len(q), device=q.device)
        return F.cross_entropy(similarity(q, gather_frozen(z)) / INSTANCE_TEMPERATURE, own)

    def draw(self, batch: Views) -> dict[str, Float[Tensor, "b c h w"]]:
        """The middle cell of the first view; what it is smoothed by there, and the cells of the
        second view that it then agrees with: the others fade to the data's mean."""
        neck = None if self.teacher_neck is None else self.teacher_neck.module
        first = look(self.encoder, self.neck, batch.images[0]).levels[0]
        second = look(self.teacher.module, neck, batch.images[1]).levels[0]
        x, grid = self.projector(first), (first.shape[2], first.shape[3])
        middle = (grid[0] // 2) * grid[1] + grid[1] // 2
        z = cells(x)
        smoothed = (z[:, middle, None] @ z.mT).clamp_min(0) ** self.cfg.gamma  # [B, 1, N]
        agreed = self.propagate(x)[:, middle, None] @ cells(self.teacher_projector(second)).mT
        alone = torch.full_like(smoothed, torch.nan).index_fill(
            2, torch.tensor(middle, device=x.device), 1.0
        )
        parts = {"middle cell": alone, "smoothed by": smoothed, "agrees with": agreed.clamp_min(0)}
        views = (batch.images[0], batch.images[0], batch.images[1])
        return {
            name: view.float() * F.interpolate(w.unflatten(2, grid), view.shape[2:])
            for (name, w), view in zip(parts.items(), views, strict=True)
        }

    def after_update(self, clock: Clock) -> None:
        momentum = cosine_ramp(self.cfg.momentum, 1.0, (clock.step + 1) / clock.total)
        self.teacher.update(self.encoder, momentum)
        self.teacher_projector.update(self.projector, momentum)
        if self.neck is not None and self.teacher_neck is not None:
            self.teacher_neck.update(self.neck, momentum)
        if self.instance is not None and self.teacher_instance is not None:
            self.teacher_instance.update(self.instance, momentum)

    def heads(self) -> dict[str, Tensor]:
        if self.neck is None:
            return {}
        state = {f"rpn.head.conv.{k}": v for k, v in self.neck.tower.state_dict().items()}
        for k, v in self.neck.fpn.state_dict().items():
            blocks, level, name = k.split(".", 2)
            state[f"neck.fpn.{blocks}.{int(level) + 1}.{name}"] = v  # 0 is of the first stage
        return state


@dataclass(frozen=True, slots=True)
class Maps:
    """What a network sees in one view."""

    last: Float[Tensor, "b d h w"]
    levels: list[Float[Tensor, "b e _ _"]]  # finest first: the maps that the loss compares


def look(encoder: Backbone, neck: Neck | None, x: Float[Tensor, "b c H W"]) -> Maps:
    if neck is None:
        y = encoder.features(x)
        return Maps(y, [y])
    assert isinstance(encoder, StagedBackbone)
    y, stages = encoder.stem(x), []
    for i in range(len(encoder.widths)):
        y = encoder.stage(y, i)
        stages.append(y)
    return Maps(y, neck(stages[1:]))


def agreement(
    y: Float[Tensor, "b n d"], z: Float[Tensor, "b n d"], near: Bool[Tensor, "b n n"]
) -> Float[Tensor, ""]:
    """Minus twice the mean cosine of positive pairs, averaged over images."""
    with torch.autocast(y.device.type, enabled=False):
        total = (y @ z.mT).masked_fill(~near, 0.0).sum((1, 2))  # [B]
    return -2 * (total / (near.sum((1, 2)) + 1e-6)).mean()


def transform(layers: int, dim: int) -> nn.Module:
    """g of the propagation module."""
    match layers:
        case 0:
            return nn.Identity()
        case 1:
            return nn.Conv2d(dim, dim, 1)
        case _:
            return pixel_mlp(dim, dim, dim)


def neck(cfg: PixPro.Config, encoder: Backbone) -> Neck | None:
    if cfg.pyramid and not isinstance(encoder, StagedBackbone):
        raise ValueError(
            f"setting method.pyramid: {cfg.pyramid} needs a backbone in stages, such as resnet50;"
            " choose 0 for others"
        )
    if cfg.tower and not cfg.pyramid:
        raise ValueError(
            f"setting method.tower: {cfg.tower} convolutions stand behind a pyramid; set"
            " method.pyramid to its channels, such as 256"
        )
    if not isinstance(encoder, StagedBackbone) or not cfg.pyramid:
        return None
    return Neck(encoder.widths[1:], cfg.pyramid, cfg.tower)


def check(views: Iterable[View]) -> None:
    """Refuse views whose cells cannot be located."""
    each = [v for v in views for _ in range(v.count)]
    if len(each) != 2 or len({v.size for v in each}) != 1:
        sizes = ", ".join(str(v.size) for v in each)
        raise ValueError(
            f"setting method.views: PixPro compares 2 views of one size, not of {sizes} pixels"
        )
    if any(v.strong.name != "none" for v in each):
        raise ValueError(
            "setting method.views: strong operations move what a cell shows; set strong.name=none"
        )


PAPER = Optim(
    name="lars",
    lr=1.0,
    weight_decay=1e-5,
    decay_1d=False,
    schedule=Schedule(warmup_epochs=5.0, final_lr=1e-6),
)
RECIPES = {
    "demo": Recipe(
        method=PixPro.Config(
            hidden=512,
            dim=128,
            instance="byol",
            views=(
                View(
                    count=2,
                    size=48,
                    crop=(0.2, 1.0),
                    strength=(0.4, 0.4, 0.2, 0.02),
                    grayscale=0.0,
                    blur=0.0,
                ),
            ),
        ),
        backbone=BackboneConfig(name="resnet10_w16", image_size=48, stem="small"),
        optim=Optim(
            lr=0.12, weight_decay=5e-4, decay_1d=False, schedule=Schedule(warmup_epochs=3.0)
        ),
        epochs=20,
        batch_size=128,
        source="ours: maps of 6 x 6, hue left alone as fruit differs by color; not tuned",
    ),
    "small": Recipe(
        method=PixPro.Config(
            hidden=1024,
            instance="byol",
            views=(
                View(size=96, crop=(0.2, 1.0), strength=COLOR, blur=1.0),
                View(size=96, crop=(0.2, 1.0), strength=COLOR, blur=0.1, solarize=0.2),
            ),
        ),
        backbone=BackboneConfig(name="resnet18", image_size=96, stem="small"),
        optim=Optim(lr=0.06, weight_decay=5e-4, schedule=Schedule(warmup_epochs=10.0)),
        epochs=400,
        batch_size=256,
        source="ours, for STL-10 and Imagenette: maps of 12 x 12; nothing is published, not tuned",
    ),
    "paper": Recipe(
        method=PixPro.Config(),
        backbone=BackboneConfig(name="resnet50"),
        optim=PAPER,
        epochs=100,
        batch_size=1024,
        source="official code, 100 epochs: 58.8 AP on VOC with C4, 40.8 on COCO with a pyramid",
    ),
    "paper-400": Recipe(
        method=PixPro.Config(),
        backbone=BackboneConfig(name="resnet50"),
        optim=PAPER,
        epochs=400,
        batch_size=1024,
        source="official code, 400 epochs: 60.2 AP on VOC with C4, 40.5 on COCO with C4",
    ),
    "pyramid": Recipe(
        method=PixPro.Config(pyramid=256, tower=1),
        backbone=BackboneConfig(name="resnet50"),
        optim=PAPER,
        epochs=100,
        batch_size=1024,
        source="the paper's idea with the layers of `detect`; no figure is published for these",
    ),
}
