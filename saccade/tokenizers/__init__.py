"""What turns pictures into codes for a method to predict; nothing here trains.

`method.tokenizer` is one of:
- `color`: the mean color of a patch in 8 steps of red, green and blue;
- the folder of a run of `saccade pretrain --method tokenizer`;
- the encoder of DALL-E's discrete VAE as released or as a plain state dict (its decoder beside it
  makes pictures);
- a VQGAN, plain or Gumbel: a checkpoint as released or a plain state dict.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..core import PixelTokenizer

NAMES = ("color",)  # those that need no file
REMEDY = (
    "give color, the folder of a run of `saccade pretrain --method tokenizer`, or the file of"
    " DALL-E's encoder or of a VQGAN"
)


def load(name: str, channels: int) -> PixelTokenizer:
    """The tokenizer of that name or path, for pictures of so many channels, with no gradients.

    What a file holds is told from the names inside. ValueError where there is nothing, where the
    file or folder is damaged or of another kind, or where the channels are others.
    """
    if not name:
        raise ValueError(f"setting method.tokenizer is missing; {REMEDY}")
    found = _open(name).requires_grad_(False)
    if found.channels != channels:
        raise ValueError(
            f"setting method.tokenizer: {name} is for pictures of {found.channels} channels, not"
            f" {channels}; train one on yours with `saccade pretrain --method tokenizer`"
        )
    return found


def _open(name: str) -> PixelTokenizer:
    path = Path(name)
    if name in NAMES:
        from .color import Color

        return Color()
    if (path / "backbone").is_dir():
        from .learned import Learned

        return Learned(path)
    if path.is_file():
        return _released(path)
    raise ValueError(f"setting method.tokenizer: {name!r} is not there; {REMEDY}")


def _released(path: Path) -> PixelTokenizer:
    from .files import read

    state = read(path)
    first = {name.partition(".")[0] for name in state}
    if "blocks" in first:
        from .dalle import DallE

        return DallE(path, state)
    if first & {"encoder", "quantize"}:
        from .vqgan import VQGAN

        return VQGAN(path, state)
    raise ValueError(
        f"setting method.tokenizer: {path} holds neither DALL-E's encoder nor a VQGAN; {REMEDY}"
    )
