"""IGPT: name the color of every pixel, one after the other or where some are hidden.

Chen et al. 2020 (ICML, no arXiv number). With tokens x_i of a palette of 512 colors,
    loss = mean_i -log p(x_i | x_1 ... x_{i-1})                        (autoregressive), or
    loss = mean over pictures of mean_{i in M} -log p(x_i | x outside M)        (BERT),
where each pixel is in M with probability `mask_ratio`; both average over the pixels of a picture,
then over pictures, and a picture without a hidden pixel counts as zero. Which one is the encoder's
to say: the first for a causal network (`igpt_s_32`), the second for one that sees all
(`igpt_s_32_bert`). The scores start at zero, so the first loss is log 512 and its gradient goes no
further than their layer.

The palette is found by k-means on the first batch, of all ranks, unless `clusters` names a file of
released colors or the encoder has one. `bits` in the log is the loss per red, green or blue value
of the picture in palette colors: not comparable with bits per dimension of 8-bit pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core import Backbone, Clock, Method, PixelBackbone, Step, View, Views
from ..nn.dist import gather_frozen
from ..nn.palette import color_loss, kmeans, read_palette
from ..nn.random import uniform
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule


class IGPT(Method[PixelBackbone]):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        mask_ratio: float = 0.15  # of a network that sees all
        clusters: str = ""  # file of colors: .npy, .npz, or transformers' preprocessor_config.json
        # The paper's 224 pixels of a shorter side of 256 to 384, on square pictures: on longer ones
        # this crop is larger, and its area is drawn evenly, not its side.
        views: tuple[View, ...] = (
            View(
                size=32,
                crop=(0.34, 0.77),
                ratio=(1.0, 1.0),
                flip=0.0,
                jitter=0.0,
                grayscale=0.0,
                blur=0.0,
            ),
        )

    def __init__(self, cfg: Config, encoder: PixelBackbone) -> None:
        super().__init__()
        check(cfg, encoder)
        self.cfg = cfg
        self.additive = encoder.causal
        self.encoder = encoder
        if cfg.clusters:
            encoder.set_palette(read_palette(cfg.clusters, len(encoder.palette)))

    def forward(self, batch: Views, clock: Clock) -> Step:
        (image,) = batch.images
        if clock.step == 0:
            self.find_palette(image)
        tokens = self.encoder.tokens(image)  # [B, H, W]
        hidden = None if self.encoder.causal else self.hidden(batch.key, tokens)
        h = self.encoder.encode(tokens, hidden)  # [B, N, D]
        loss = color_loss(self.encoder.scores(h), tokens, hidden)
        bits = loss.detach() / math.log(2) / self.encoder.channels
        return Step(loss, {"bits": bits}, h.detach().mean(1))

    @torch.no_grad()
    @torch.compiler.disable()
    def find_palette(self, image: Float[Tensor, "b c H W"]) -> None:
        """Take the colors of these pictures, of all ranks, where there are none yet."""
        if not self.encoder.fitted:
            pixels = gather_frozen(self.encoder.pixels(image)).flatten(0, 1)  # [N, 3]
            self.encoder.set_palette(kmeans(pixels, len(self.encoder.palette)))

    def hidden(self, key: Int[Tensor, "b"], tokens: Int[Tensor, "b H W"]) -> Bool[Tensor, "b H W"]:
        draws = uniform(key, tokens[0].numel(), "hidden")
        return (draws < self.cfg.mask_ratio).view_as(tokens)

    @torch.no_grad()
    def draw(self, batch: Views) -> dict[str, Float[Tensor, "b c h w"]]:
        tokens = self.encoder.tokens(batch.images[0])
        if self.encoder.causal:
            given = tokens.shape[1] // 2 * tokens.shape[2]
            hidden = torch.arange(tokens[0].numel(), device=tokens.device) >= given
            hidden = hidden.view_as(tokens[:1]).expand_as(tokens)
            drawn = complete(self.encoder, tokens, given, batch.key)
        else:
            hidden = self.hidden(batch.key, tokens)
            best = self.encoder.scores(self.encoder.encode(tokens, hidden)).argmax(2)
            drawn = torch.where(hidden, best.view_as(tokens), tokens)
        seen = self.encoder.paint(tokens)
        return {
            "palette": seen,
            "given": seen.masked_fill(hidden[:, None], torch.nan),
            "completed": self.encoder.paint(drawn),
        }


@torch.no_grad()
def complete(
    encoder: PixelBackbone,
    tokens: Int[Tensor, "b H W"],
    given: int,
    key: Int[Tensor, "b"],
    temperature: float = 1.0,
    top_k: int = 0,
) -> Int[Tensor, "b H W"]:
    """The pictures with every pixel behind the first `given` drawn anew, one after the other."""
    flat = tokens.flatten(1).clone()
    draws = uniform(key, flat.shape[1], "color")
    memory = encoder.memory(len(flat))
    for i in range(given, flat.shape[1]):
        new = flat[:, :given] if i == given else flat[:, i - 1 : i]
        scores = encoder.scores(encoder.advance(new, i - new.shape[1], memory))
        flat[:, i] = pick(scores, draws[:, i], temperature, top_k)
    return flat.view_as(tokens)


def pick(
    scores: Float[Tensor, "b k"], draw: Float[Tensor, "b"], temperature: float, top_k: int
) -> Int[Tensor, "b"]:
    """A color by the softmax of scores / temperature, of the `top_k` highest (0: of all)."""
    scores = scores.double() / temperature
    if 0 < top_k < scores.shape[1]:
        least = scores.topk(top_k).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    share = scores.softmax(1).cumsum(1)
    return (share <= draw.double()[:, None] * share[:, -1:]).sum(1)


def check(cfg: IGPT.Config, encoder: Backbone) -> None:
    if not isinstance(encoder, PixelBackbone):
        raise ValueError(
            "setting backbone.name: iGPT needs a transformer over colors; choose igpt_nano_32"
        )
    if (n := sum(v.count for v in cfg.views)) != 1:
        raise ValueError(f"setting method.views: iGPT sees 1 view of a picture, not {n}")
    if cfg.views[0].size != encoder.image_size:
        raise ValueError(
            f"setting method.views.0.size: {cfg.views[0].size} pixels, but the sequence of the "
            f"backbone is made for backbone.image_size={encoder.image_size}; set both alike"
        )
    if encoder.causal and cfg.mask_ratio != IGPT.Config.mask_ratio:
        raise ValueError(
            f"setting method.mask_ratio: {cfg.mask_ratio} is not read, as this network hides no "
            "pixel; choose one such as igpt_nano_32_bert, or leave it out"
        )
    if not 0 < cfg.mask_ratio <= 1:
        raise ValueError(f"setting method.mask_ratio: {cfg.mask_ratio}; choose above 0, up to 1")


def adam(lr: float, warmup: float = 1.0) -> Optim:
    """Half a cosine to 0 after epochs of warm-up, no decay."""
    return Optim(
        name="adamw",
        lr=lr,
        lr_rule="none",
        betas=(0.9, 0.95),
        weight_decay=0.0,
        schedule=Schedule(warmup_epochs=warmup),
    )


def whole(size: int) -> tuple[View, ...]:
    """Whole pictures (the middle square of others), mirrored or not."""
    return (
        View(
            size=size,
            crop=(1.0, 1.0),
            ratio=(1.0, 1.0),
            interpolation="bicubic",
            jitter=0.0,
            grayscale=0.0,
            blur=0.0,
        ),
    )


RECIPES = {
    "demo": Recipe(
        method=IGPT.Config(views=whole(16)),
        backbone=BackboneConfig(name="igpt_pico_16", image_size=16, layer="middle"),
        optim=adam(3e-3),
        epochs=30,
        batch_size=32,
        source="ours: whole pictures at 16 pixels, minutes on two cores",
    ),
    "small": Recipe(
        method=IGPT.Config(views=whole(32)),
        backbone=BackboneConfig(name="igpt_nano_32", image_size=32, layer="middle"),
        optim=adam(3e-3),
        epochs=25,
        batch_size=64,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        source="ours: about 20,000 steps on CIFAR-10, the paper's learning rate for S",
    ),
    "cpu": Recipe(
        method=IGPT.Config(views=whole(16)),
        backbone=BackboneConfig(name="igpt_pico_16", image_size=16, layer="middle"),
        optim=adam(3e-3, warmup=0.1),
        epochs=1,
        batch_size=32,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        source="ours: CIFAR-10 at 16 pixels, a quarter of an hour on one core",
    ),
    "paper": Recipe(
        method=IGPT.Config(),
        backbone=BackboneConfig(name="igpt_l_32", image_size=32, layer="middle"),
        optim=adam(1e-3),
        epochs=100,
        batch_size=128,
        source="Chen et al. 2020, iGPT-L at 32 pixels, a million iterations on ImageNet: 60.3 % "
        "linear there, 96.3 % on CIFAR-10",
    ),
}
