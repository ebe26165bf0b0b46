"""What is compared: the pooled vector, and all tokens of a plain ViT that norms its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeGuard

from jaxtyping import Float
from torch import Tensor, nn

from ..backbones.timm_adapter import ViT
from ..core import Backbone

Reader = Callable[[Tensor], dict[str, Tensor]]  # [B, C, H, W] -> vector [B, D], tokens [B, P, D]


def outputs(backbone: Backbone, x: Float[Tensor, "b c H W"]) -> dict[str, Tensor]:
    """The vector [B, D] and, where it can be compared, the tokens [B, P, D]."""
    if not norms_tokens(backbone):
        return {"vector": backbone(x)}
    tokens = backbone.encode(backbone.tokens(x))
    return {"vector": backbone.net.forward_head(tokens), "tokens": tokens}


def norms_tokens(backbone: Backbone) -> TypeGuard[ViT]:
    """Whether it is a plain ViT whose last norm stands before pooling, as other libraries' do."""
    return isinstance(backbone, ViT) and isinstance(backbone.net.fc_norm, nn.Identity)


@contextmanager
def without_progress() -> Iterator[None]:
    """transformers loads weights without its bar."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
