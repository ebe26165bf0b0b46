"""One small layer of every mechanism of attention, from maps [B, 16, 8, 8] to such maps."""

import torch
from torch import nn

from saccade.attention import (
    DisentangledNonLocal,
    DuplicateRemoval,
    FeaturePyramidTransformer,
    GlobalContext,
    GlobalLambda,
    LambdaLayer,
    LearnedRegionFeatures,
    LocalLambda,
    LocalRelation,
    NonLocal,
    ObjectRelation,
)


class Pyramid(nn.Module):
    """A level of a pyramid of two, as a map to map."""

    def __init__(self, square=0):
        super().__init__()
        self.body = FeaturePyramidTransformer(16, (4, 8), square=square)

    def forward(self, x):
        fine, coarse = self.body([x, nn.functional.max_pool2d(x, 2)])
        return fine + nn.functional.interpolate(coarse, x.shape[2:])


class Objects(nn.Module):
    """Every cell of a map as an object with a box of its own."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        corner = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0)).flip(1)
        boxes = 4 * torch.cat([corner, corner + 2], 1)
        y = [self.seen(one, boxes) for one in x.flatten(2).mT]
        return torch.stack(y).mT.unflatten(2, (8, 8))


class Related(Objects):
    def seen(self, x, boxes):
        return self.body(x, boxes, torch.ones(64, dtype=torch.bool))


class Unrepeated(Objects):
    """Features times the chance that the object is no duplicate of another of its class."""

    def seen(self, x, boxes):
        scores = x[:, :3].sigmoid()
        ranked = self.body(scores, x, boxes[:, None].expand(-1, 3, -1))
        total = torch.zeros_like(x[:, 0])
        for rows, kept in zip(ranked.rows, ranked.kept.mean(2), strict=True):
            total = total.index_add(0, rows, kept)
        return x * total[:, None]


class Region(nn.Module):
    """The whole picture as one region of as many bins as there are cells."""

    def __init__(self, **settings):
        super().__init__()
        self.body = LearnedRegionFeatures(16, 8, embedding=16, width=8, **settings)

    def forward(self, x):
        regions = torch.tensor([[i, 0.0, 0, 32, 32] for i in range(len(x))])
        return self.body(x, regions, 4, torch.tensor([[32, 32]] * len(x)))


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
    "feature_pyramid_transformer square": lambda: Pyramid(3),
    "object_relation": lambda: Related(ObjectRelation(16, heads=4, width=8)),
    "duplicate_removal": lambda: Unrepeated(DuplicateRemoval(16)),
    "learned_region_features": Region,
    "learned_region_features prior": lambda: Region(prior=True),
}


def picture(b=2):
    torch.manual_seed(1)
    return torch.randn(b, 16, 8, 8)
