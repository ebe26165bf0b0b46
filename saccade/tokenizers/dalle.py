"""The discrete VAE that DALL-E was trained with: 8,192 codes, one for 8 x 8 pixels.

Ramesh et al. 2021, arXiv:2102.12092, with the released sizes and names of weights. Pictures of
8 times the grid go in (112 pixels for 14 x 14 codes) as .8 x + .1 of values in [0, 1]: no mean or
deviation is subtracted. A code is the argmax of the encoder's output; the decoder's first three
channels give sigmoid(y), mapped back. Residual branches count 1 / 64.

BEiT and CAE cut the picture for the tokenizer from the stored one by Lanczos; here it is the
method's own view made smaller, antialiased. The released files hold whole modules: their tensors
are taken out and none of their code is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import PixelTokenizer
from .files import read
from .sizes import resized

GAIN = 1 / 64  # of a residual branch: 1 / layers^2
EDGE = 0.1  # of [0, 1] that is left free at both ends
STRIDE = 8  # pixels of a code's side


class Conv(nn.Module):
    """A convolution under the released names of its weights."""

    def __init__(self, w: Tensor, b: Tensor) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(w.float()), nn.Parameter(b.float())

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class Block(nn.Module):
    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.id_path = _conv(state, "id_path") if "id_path.w" in state else nn.Identity()
        self.res_path = nn.ModuleDict(
            {f"conv_{i}": _conv(state, f"res_path.conv_{i}") for i in range(1, 5)}
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        y = x
        for conv in self.res_path.values():
            y = conv(y.relu())
        return self.id_path(x) + GAIN * y


class Half(nn.Module):
    """The encoder, which halves the map after each group but the last, or the decoder."""

    def __init__(self, state: Mapping[str, Tensor], *, up: bool) -> None:
        super().__init__()
        self.up = up
        blocks: dict[str, nn.Module] = {"input": _conv(state, "blocks.input")}
        for i in range(1, 5):
            group = _under(state, f"blocks.group_{i}")
            names = [n for n in ("block_1", "block_2") if f"{n}.res_path.conv_1.w" in group]
            blocks[f"group_{i}"] = nn.ModuleDict({n: Block(_under(group, n)) for n in names})
        blocks["output"] = nn.ModuleDict({"conv": _conv(state, "blocks.output.conv")})
        self.blocks = nn.ModuleDict(blocks)

    def forward(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d h w"]:
        x = self.blocks["input"](x)
        for i in range(1, 5):
            for block in self.blocks[f"group_{i}"].values():  # type: ignore[operator]
                x = block(x)
            if i < 4:
                x = F.interpolate(x, scale_factor=2.0) if self.up else F.max_pool2d(x, 2)
        return self.blocks["output"]["conv"](x.relu())  # type: ignore[index]


class DallE(PixelTokenizer):
    """The tokenizer of a released encoder, all of whose weights `state` holds.

    Codes are in [0, codes) and pictures in [0, 1]; pictures that come in are clipped to that and
    made 8 times as large as the grid. `decodes` says whether the decoder's file lies beside.
    ValueError, naming the first weight that is missing or in excess.
    """

    def __init__(self, path: Path, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.encoder = _half(path, state, up=False)
        beside = path.with_name(path.name.replace("encoder", "decoder"))
        self.decodes = beside != path and beside.is_file()
        self.decoder = _half(beside, read(beside), up=True) if self.decodes else None
        self.codes = len(self.encoder.get_parameter("blocks.output.conv.w"))
        self.channels = self.encoder.get_parameter("blocks.input.w").shape[1]

    def encode(self, x: Float[Tensor, "b c H W"], grid: tuple[int, int]) -> Int[Tensor, "b h w"]:
        x = resized(x, (STRIDE * grid[0], STRIDE * grid[1])).clamp(0, 1)
        return self.encoder((1 - 2 * EDGE) * x + EDGE).argmax(1)

    def decode(
        self, codes: Int[Tensor, "b h w"], size: tuple[int, int]
    ) -> Float[Tensor, "b c H W"]:
        assert self.decoder is not None  # `decodes` says so
        one_hot = F.one_hot(codes, self.codes).permute(0, 3, 1, 2).float()
        y = self.decoder(one_hot)[:, : self.channels].sigmoid()
        return resized(((y - EDGE) / (1 - 2 * EDGE)).clamp(0, 1), size)


def _half(path: Path, state: Mapping[str, Tensor], *, up: bool) -> Half:
    kind = "decoder" if up else "encoder"
    try:
        half = Half(state, up=up)
    except KeyError as missing:
        raise ValueError(
            f"setting method.tokenizer: {path} has no {missing.args[0]}; "
            f"give the {kind} of DALL-E's discrete VAE"
        ) from None
    if extra := state.keys() - half.state_dict().keys():
        raise ValueError(
            f"setting method.tokenizer: {path} has {min(extra)}, "
            f"which DALL-E's {kind} has not; is it the right file?"
        )
    return half


def _conv(state: Mapping[str, Tensor], name: str) -> Conv:
    return Conv(state[f"{name}.w"], state[f"{name}.b"])


def _under(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The part of a state below a name."""
    return {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
