"""Mechanisms of attention, one a file: plain modules for anyone's network.

Their maps of pixels are [B, C, H, W] as everywhere in torch; boxes are x0, y0, x1, y1 in pixels.
"""

from __future__ import annotations

from .disentangled_non_local import DisentangledNonLocal
from .duplicate_removal import DuplicateRemoval
from .feature_pyramid_transformer import FeaturePyramidTransformer
from .global_context import GlobalContext
from .lambda_layer import GlobalLambda, LambdaLayer, LocalLambda
from .learned_region_features import LearnedRegionFeatures
from .local_relation import LocalRelation
from .non_local import NonLocal
from .object_relation import ObjectRelation, RelationHead

__all__ = [
    "DisentangledNonLocal",
    "DuplicateRemoval",
    "FeaturePyramidTransformer",
    "GlobalContext",
    "GlobalLambda",
    "LambdaLayer",
    "LearnedRegionFeatures",
    "LocalLambda",
    "LocalRelation",
    "NonLocal",
    "ObjectRelation",
    "RelationHead",
]
