"""BEiT: predict the codes of hidden patches, as a tokenizer reads them off the whole picture.

Bao et al. 2022, arXiv:2106.08254. With M the masked patches of the batch, c_i the code of patch i,
and h the encoder's output when patches of M are replaced by a learned token,
    loss = mean over i in M of -log softmax(W h_i)_{c_i}.
M is made of rectangles, `masked` patches at most: the sampler may stop short, as the official one.
The encoder sees all places; the paper's knows them by one table of distances shared by all blocks
(`beit_*_shared_*`), without a position table. Its keys have no bias.

The tokenizer (`method.tokenizer`) sees the same crop, flip and colors at its own size: the official
code cuts that picture by Lanczos from the stored one, here the view itself is resized. Weights
start at normal(.02) cut at .02, those that end a residual branch divided by sqrt(2 block).
Where codes come from matters: DALL-E's were learned on 250 million pictures, and with them the
method is not trained on yours alone. Learning rates are for the stated batch, without a rule.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .. import tokenizers
from ..core import Clock, Group, Method, PatchBackbone, Step, View, Views
from ..nn.dist import mean
from ..nn.functional import take
from ..nn.masking import block_masks, hide
from ..recipe import (
    CIFAR_MEAN,
    CIFAR_STD,
    BackboneConfig,
    Normalize,
    Optim,
    Recipe,
    Schedule,
)
from ..tokenizers.pictures import codes_of, pictures


class BEiT(Method[PatchBackbone]):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        tokenizer: str = ""  # color, a tokenizer's run, or a file; see `tokenizers`
        masked: int = 75  # patches, at most
        min_block: int = 16  # patches of a rectangle
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
        patches, size = math.prod(encoder.grid), cfg.views[0].size
        if (count := sum(v.count for v in cfg.views)) != 1:
            raise ValueError(f"setting method.views: BEiT sees 1 view of a picture, not {count}")
        if size != encoder.image_size:
            raise ValueError(
                f"setting method.views.0.size: {size} pixels, but backbone.image_size="
                f"{encoder.image_size}; set both alike"
            )
        if not 0 < cfg.masked < patches:
            raise ValueError(
                f"setting method.masked: {cfg.masked} of {patches} patches; hide and keep one each"
            )
        if not 1 <= cfg.min_block <= cfg.masked:
            raise ValueError(
                f"setting method.min_block: {cfg.min_block} patches, but method.masked="
                f"{cfg.masked}; choose 1 to {cfg.masked}"
            )
        self.cfg = cfg
        self.encoder = encoder
        self.tokenizer = tokenizers.load(cfg.tokenizer, encoder.channels)
        self.mask_token = nn.Parameter(torch.empty(1, 1, encoder.dim))
        self.head = nn.Linear(encoder.dim, self.tokenizer.codes)
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """The official start; tables of distances and layer scales keep theirs."""
        weights = {n: p for n, p in self.encoder.named_parameters() if p.ndim > 1}
        start = [p for n, p in weights.items() if n.endswith(("weight", "cls_token"))]
        for p in (*start, self.mask_token, self.head.weight):
            nn.init.trunc_normal_(p, std=0.02, a=-0.02, b=0.02)
        nn.init.zeros_(self.head.bias)
        for name, p in weights.items():
            if found := re.search(r"blocks\.(\d+)\.(attn\.proj|mlp\.fc2)\.weight$", name):
                p.div_(math.sqrt(2 * (int(found[1]) + 1)))

    def groups(self) -> Iterable[Group]:
        """CLS does not decay; the mask token and tables of distances do, as officially."""
        known = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        cls = [(n, p) for n, p in known if n.endswith("cls_token")]
        rest = [(n, p) for n, p in known if not n.endswith("cls_token")]
        return [Group(rest), Group(cls, decay_scale=0.0)]

    def forward(self, batch: Views, clock: Clock) -> Step:
        codes = codes_of(self.tokenizer, batch, self.encoder.grid)  # [B, N]
        mask = self.choose(batch.key)
        y = self.encode(batch.images[0], mask)
        at = mask.long().argsort(dim=1, descending=True, stable=True)[
            :, : self.cfg.masked
        ]  # [B, m]
        valid, target = mask.gather(1, at), codes.gather(1, at)
        scores = self.head(take(y, at)).float()  # [B, m, K] of masked patches, then of some others
        each = F.cross_entropy(scores.flatten(0, 1), target.flatten(), reduction="none")
        # over ranks, so that all masked patches count the same; a batch may have none
        total = mean(valid.sum().float()).clamp_min(1)
        loss = (each * valid.flatten()).sum() / total
        right = ((scores.argmax(-1) == target) & valid).sum() / total
        logs = {"accuracy": right, "masked": mask.float().mean()}
        return Step(loss, logs, y.mean(1).detach())

    def choose(self, key: Int[Tensor, "b"]) -> Bool[Tensor, "b n"]:
        """The masked patches of each picture."""
        count = torch.full(key.shape, float(self.cfg.masked), device=key.device)
        return block_masks(key, count, self.encoder.grid, "mask", least=self.cfg.min_block)

    def encode(
        self, image: Float[Tensor, "b c H W"], mask: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b n d"]:
        """Patches after the encoder, which does not see masked ones."""
        positions = self.encoder.positions(image.shape[2], image.shape[3])
        tokens = hide(self.encoder.tokens(image), positions, mask, self.mask_token[0, 0])
        return self.encoder.encode(tokens)[:, self.encoder.prefix :]

    def draw(self, batch: Views) -> dict[str, Float[Tensor, "b c h w"]]:
        codes, mask = codes_of(self.tokenizer, batch, self.encoder.grid), self.choose(batch.key)
        guess = self.head(self.encode(batch.images[0], mask)).argmax(-1)
        return pictures(self.tokenizer, batch, self.encoder.grid, codes, guess, mask)


def _view(size: int) -> View:
    """Without the jitter: colors are what the codes are about."""
    return View(size=size, interpolation="bicubic", jitter=0.0, grayscale=0.0, blur=0.0)


RECIPES = {
    "demo": Recipe(
        method=BEiT.Config(tokenizer="color", masked=30, min_block=4, views=(_view(64),)),
        backbone=BackboneConfig(name="beit_nano_shared_patch8_64", image_size=64),
        optim=Optim(
            name="adamw",
            lr=1e-3,
            weight_decay=0.05,
            decay_1d=False,
            clip=3.0,
            schedule=Schedule(warmup_epochs=10.0, final_lr=1e-5),
        ),
        epochs=60,
        batch_size=128,
        source="ours: mean colors as codes, so that no file is needed; not tuned",
    ),
    "small": Recipe(
        method=BEiT.Config(tokenizer="color", masked=30, min_block=4, views=(_view(32),)),
        backbone=BackboneConfig(name="beit_tiny_shared_patch4_32", image_size=32, drop_path=0.1),
        optim=Optim(
            name="adamw",
            lr=1e-3,
            lr_rule="none",
            weight_decay=0.05,
            decay_1d=False,
            clip=3.0,
            schedule=Schedule(warmup_epochs=20.0, final_lr=1e-5),
        ),
        epochs=400,
        batch_size=256,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        source="ours, for CIFAR-10: 30 of 64 patches; give your own tokenizer; not tuned",
    ),
    "paper": Recipe(
        method=BEiT.Config(),
        backbone=BackboneConfig(name="beit_base_shared_patch16_224", drop_path=0.1),
        optim=Optim(
            name="adamw",
            lr=1.5e-3,
            lr_rule="none",
            weight_decay=0.05,
            decay_1d=False,
            clip=3.0,
            schedule=Schedule(warmup_epochs=10.0, final_lr=1e-5),
        ),
        epochs=800,
        batch_size=2048,
        normalize=Normalize(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        source="official code with DALL-E's tokenizer (a file you give): 83.2 % fine-tuned",
    ),
}
