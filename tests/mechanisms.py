"""One small layer of every mechanism of attention, from maps [B, 16, 8, 8] to such maps."""

import torch
from torch import nn

from saccade.attention import (
    DisentangledNonLocal,
    FeaturePyramidTransformer,
    GlobalContext,
    GlobalLambda,
    LambdaLayer,
    LocalLambda,
    LocalRelation,
    NonLocal,
)


class Pyramid(nn.Module):
    """A level of a pyramid of two, as a map to map."""

    def __init__(self):
        super().__init__()
        self.body = FeaturePyramidTransformer(16, 2)

    def forward(self, x):
        fine, coarse = self.body([x, nn.functional.max_pool2d(x, 2)])
        return fine + nn.functional.interpolate(coarse, x.shape[2:])


MADE = {
    "non_local": lambda: NonLocal(16, pool="input"),
    "non_local pairs": lambda: NonLocal(16, pairing="concatenation"),
    "non_local dots": lambda: NonLocal(16, pairing="dot_product"),
    "disentangled_non_local": lambda: DisentangledNonLocal(16),
    "global_context": lambda: GlobalContext(16),
    "local_relation": lambda: LocalRelation(16, kernel=3),
    "lambda_layer": lambda: LambdaLayer(16, 16, LocalLambda(5)),
    "lambda_layer global": lambda: LambdaLayer(16, 16, GlobalLambda((8, 8))),
    "feature_pyramid_transformer": Pyramid,
}


def picture(b=2):
    torch.manual_seed(1)
    return torch.randn(b, 16, 8, 8)
