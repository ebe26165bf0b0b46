"""Mechanisms of attention, one a file: plain modules for anyone's network.

Their maps of pixels are [B, C, H, W] as everywhere in torch.
"""

from __future__ import annotations

from .disentangled_non_local import DisentangledNonLocal
from .feature_pyramid_transformer import FeaturePyramidTransformer
from .global_context import GlobalContext
from .lambda_layer import GlobalLambda, LambdaLayer, LocalLambda
from .local_relation import LocalRelation
from .non_local import NonLocal

__all__ = [
    "DisentangledNonLocal",
    "FeaturePyramidTransformer",
    "GlobalContext",
    "GlobalLambda",
    "LambdaLayer",
    "LocalLambda",
    "LocalRelation",
    "NonLocal",
]
