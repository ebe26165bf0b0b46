"""The tokenizer that `saccade pretrain --method tokenizer` trains, and its file.

A run folder holds the encoder in `backbone/` and the rest in `heads.safetensors`, whose shapes say
everything: a codebook, the layer in front of it and the decoder.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .. import weights
from ..core import PatchBackbone, PixelTokenizer
from ..nn.parts import without_drop_path
from .sizes import resized

HEADS = "heads.safetensors"


class Decoder(nn.Module):
    """Codes' vectors to the pixels of their cells: convolutions between neighbors, no norm."""

    def __init__(self, dim: int, hidden: int, depth: int, patch: int, channels: int) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Conv2d(dim, hidden, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(hidden, hidden, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(hidden, hidden, 3, padding=1),
            )
            for _ in range(depth)
        )
        self.pixels = nn.Conv2d(hidden, patch * patch * channels, 1)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c H W"]:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return F.pixel_shuffle(self.pixels(x), self.patch)


class Codebook(nn.Module):
    """The layer in front of the codes, their vectors and the decoder.

    The code of a cell is the largest score. With unit vectors in `codebook`, which k-means moves,
    the score is the cosine with the cell's own; else the layer gives scores itself.
    """

    codebook: Tensor  # [K, E]

    def __init__(
        self, dim: int, codes: int, code_dim: int, decoder: Decoder, *, cosine: bool
    ) -> None:
        super().__init__()
        self.cosine = cosine
        self.front = nn.Linear(dim, code_dim if cosine else codes)
        start = F.normalize(torch.randn(codes, code_dim), dim=-1)
        if cosine:
            self.register_buffer("codebook", start)
        else:
            self.codebook = nn.Parameter(start)
        self.decoder = decoder

    def vectors(self, y: Float[Tensor, "b d h w"]) -> Float[Tensor, "b h w e"]:
        """What the front layer gives of each cell: unit vectors, or scores."""
        z = self.front(y.permute(0, 2, 3, 1)).float()
        return F.normalize(z, dim=-1) if self.cosine else z

    def nearest(self, z: Float[Tensor, "b h w e"]) -> Int[Tensor, "b h w"]:
        scores = z @ self.codebook.T if self.cosine else z
        return scores.argmax(-1)

    def paint(self, vectors: Float[Tensor, "b h w e"]) -> Float[Tensor, "b c H W"]:
        """Normalized pictures."""
        return self.decoder(vectors.permute(0, 3, 1, 2))


class Learned(PixelTokenizer):
    mean: Tensor  # [C, 1, 1] of the pictures that the encoder takes
    std: Tensor  # [C, 1, 1]
    decodes = True

    def __init__(self, folder: Path) -> None:
        super().__init__()
        loaded = weights.load(folder)
        encoder = loaded.backbone
        state = _heads(folder)
        if not isinstance(encoder, PatchBackbone) or not state:
            raise ValueError(
                f"setting method.tokenizer: {folder} is no run of --method tokenizer; "
                "give one, or color"
            )
        self.encoder = encoder
        without_drop_path(self.encoder)
        self.coder = _coder(state, encoder)
        self.codes, self.channels = len(self.coder.codebook), encoder.channels
        for name, values in (("mean", loaded.normalize.mean), ("std", loaded.normalize.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def encode(self, x: Float[Tensor, "b c H W"], grid: tuple[int, int]) -> Int[Tensor, "b h w"]:
        patch = self.encoder.patch
        x = resized(x, (patch * grid[0], patch * grid[1]))
        y = self.encoder.features((x - self.mean) / self.std)
        return self.coder.nearest(self.coder.vectors(y))

    def decode(
        self, codes: Int[Tensor, "b h w"], size: tuple[int, int]
    ) -> Float[Tensor, "b c H W"]:
        return resized(self.coder.paint(self.coder.codebook[codes]) * self.std + self.mean, size)


def _heads(folder: Path) -> dict[str, Tensor]:
    """The tokenizer's layers in a run folder, without their common prefix; empty without any."""
    path = folder / HEADS
    try:
        held = load_file(path) if path.is_file() else {}
    except SafetensorError as error:
        raise ValueError(
            f"setting method.tokenizer: {path} is damaged ({error}); copy it again"
        ) from None
    return {k.removeprefix("tokenizer."): v for k, v in held.items() if k.startswith("tokenizer.")}


def _coder(state: dict[str, Tensor], encoder: PatchBackbone) -> Codebook:
    """Sizes are read off the weights."""
    codes, code_dim = state["codebook"].shape
    depth = len({k.split(".")[2] for k in state if k.startswith("decoder.blocks.")})
    hidden = len(state["decoder.embed.weight"])
    decoder = Decoder(code_dim, hidden, depth, encoder.patch, encoder.channels)
    cosine = len(state["front.weight"]) != codes
    coder = Codebook(encoder.dim, codes, code_dim, decoder, cosine=cosine)
    coder.load_state_dict(state)
    return coder
