"""Data2Vec: predict a teacher's features, averaged over its last layers, where patches are hidden.

Baevski et al. 2022, arXiv:2202.03555. The teacher, an average of the encoder, sees the whole
picture: y_i = LN(mean over its last K blocks of LN(output of the block for patch i)), LN over
channels without weights. Outputs are those of whole blocks, in front of the network's last norm.
The encoder sees [MASK] in place of hidden patches (BEiT's blocks); a linear layer gives z_i. With M
the hidden patches of the batch,
    loss = mean over M and channels of smooth_l1(z_i - y_i),   beta 2.
The teacher follows after each step with a constant momentum, without stochastic depth.

The paper's encoder knows distances only (`beit_base_shared_patch16_224`). LayerScale, where a
network has it, starts at 1e-4 (the paper's ViT-L: 1e-5). CLS does not decay, the mask token does.
Left out: dropout of attention, .05. The paper's 86.6 % of ViT-L are two runs in a row, the second
with momentum .9999.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..core import Clock, Group, Method, PatchBackbone, Step, View, Views
from ..nn.dist import mean
from ..nn.masking import block_masks, hide
from ..nn.parts import Ema, without_drop_path
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule

SCALES = (".gamma_1", ".gamma_2", ".gamma")  # endings of LayerScale's names in timm's networks
SCALE = 1e-4  # that it starts at


class Data2Vec(Method[PatchBackbone]):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        mask_ratio: float = 0.615  # of the patches at most: 120 of 196
        last_layers: int = 6  # K
        beta: float = 2.0  # where the loss turns from a square to a line
        momentum: float = 0.9998
        views: tuple[View, ...] = (
            View(
                interpolation="bicubic",
                jitter=1.0,
                strength=(0.4, 0.4, 0.4, 0.0),
                grayscale=0.0,
                blur=0.0,
            ),
        )

    def __init__(self, cfg: Config, encoder: PatchBackbone) -> None:
        super().__init__()
        if (n := sum(v.count for v in cfg.views)) != 1:
            raise ValueError(f"setting method.views: Data2Vec sees 1 view of a picture, not {n}")
        if not 1 <= cfg.last_layers <= encoder.depth:
            raise ValueError(
                f"setting method.last_layers: {cfg.last_layers}, but the backbone has "
                f"{encoder.depth} blocks; choose 1 to {encoder.depth}"
            )
        patches = (cfg.views[0].size // encoder.patch) ** 2
        self.most = int(cfg.mask_ratio * patches)
        if not 0 < self.most <= patches:
            raise ValueError(
                f"setting method.mask_ratio: {cfg.mask_ratio} hides {self.most} of {patches} "
                "patches; choose a share such as .6"
            )
        self.cfg = cfg
        self.encoder = encoder
        for name, p in encoder.named_parameters():
            if name.endswith(SCALES):
                nn.init.constant_(p, SCALE)
        token = torch.empty(1, 1, encoder.dim)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(token, std=0.02))
        self.head = nn.Linear(encoder.dim, encoder.dim)
        self.teacher = Ema(encoder)
        without_drop_path(self.teacher)

    def forward(self, batch: Views, clock: Clock) -> Step:
        image = batch.images[0]
        target = self.target(image)  # [B, N, D]
        net = self.encoder
        grid = (image.shape[2] // net.patch, image.shape[3] // net.patch)
        mask = self.choose(batch.key, grid)  # [B, N]
        positions = net.positions(image.shape[2], image.shape[3])
        seen = net.encode(hide(net.tokens(image), positions, mask, self.mask_token[0, 0]))
        z = self.head(seen[:, net.prefix :]).float()
        each = F.smooth_l1_loss(z, target, reduction="none", beta=self.cfg.beta).mean(-1)  # [B, N]
        total = mean(mask.sum().float()).clamp_min(1)
        loss = each.masked_fill(~mask, 0.0).sum() / total
        spread = target.std(0).mean()  # over pictures: 0 where all have the same features
        logs = {"masked": mask.float().mean(), "target_std": spread}
        return Step(loss, logs, seen.mean(1).detach())

    @torch.no_grad()
    def target(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b n d"]:
        """Of every patch, with mean 0 and variance 1 over channels."""
        net = self.teacher.module
        blocks = net.layers(x, self.cfg.last_layers, normed=False)
        each = [F.layer_norm(y.float(), y.shape[-1:]) for y in blocks]
        whole = torch.stack(each).mean(0)[:, net.prefix :]
        return F.layer_norm(whole, whole.shape[-1:])

    def choose(self, key: Int[Tensor, "b"], grid: tuple[int, int]) -> Bool[Tensor, "b n"]:
        """The hidden patches, in blocks."""
        count = torch.full(key.shape, float(self.most), device=key.device)
        return block_masks(key, count, grid, "blocks")

    def groups(self) -> Iterable[Group]:
        known = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        yield Group([(n, p) for n, p in known if not n.endswith("cls_token")])
        yield Group([(n, p) for n, p in known if n.endswith("cls_token")], decay_scale=0.0)

    def after_update(self, clock: Clock) -> None:
        self.teacher.update(self.encoder, self.cfg.momentum)


def crops(size: int) -> tuple[View, ...]:
    return (View(size=size, interpolation="bicubic", jitter=0.0, grayscale=0.0, blur=0.0),)


OURS = Optim(
    name="adamw",
    lr=1e-3,
    lr_rule="none",
    weight_decay=0.05,
    decay_1d=False,
    clip=3.0,
    schedule=Schedule(warmup_epochs=10.0),
)
RECIPES = {
    "demo": Recipe(
        method=Data2Vec.Config(momentum=0.996, last_layers=3, views=crops(64)),
        backbone=BackboneConfig(name="vit_nano_patch8_64", image_size=64),
        optim=OURS,
        epochs=60,
        batch_size=128,
        source="ours, not tuned",
    ),
    "small": Recipe(
        method=Data2Vec.Config(mask_ratio=0.6, momentum=0.998, views=crops(32)),
        backbone=BackboneConfig(name="vit_tiny_patch4_32", image_size=32),
        optim=OURS,
        epochs=400,
        batch_size=256,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        source="ours, for CIFAR-10: 38 of 64 patches hidden, no color jitter; not tuned",
    ),
    "paper": Recipe(
        method=Data2Vec.Config(),
        backbone=BackboneConfig(name="beit_base_shared_patch16_224", drop_path=0.25),
        optim=Optim(
            name="adamw",
            lr=2e-3,
            lr_rule="none",
            weight_decay=0.05,
            decay_1d=False,
            clip=3.0,
            schedule=Schedule(warmup_epochs=10.0, final_lr=1e-5),
        ),
        epochs=800,
        batch_size=2048,
        source="arXiv:2202.03555 and official code, ViT-B: 84.2 % fine-tuned on ImageNet",
    ),
}
