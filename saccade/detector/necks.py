"""From an encoder's maps to those that regions are proposed on and taken from.

Pyramids of Lin et al. 2016, arXiv:1612.03144, of Zhang et al. 2020, arXiv:2007.09451, and, for
plain ViTs, of Li et al. 2022, arXiv:2203.16527.
"""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.misc import Conv2dNormActivation

from ..attention import FeaturePyramidTransformer
from ..attention.feature_pyramid_transformer import ALL, Part
from ..core import PatchBackbone, StagedBackbone

Maps = OrderedDict[str, Tensor]  # by level, finest first


class C4(nn.Module):
    """The map of the stage before the last, as it is; that stage becomes the head."""

    rpn_depth = 1

    def __init__(self, encoder: StagedBackbone, *, batch_norm: bool) -> None:
        super().__init__()
        self.width = encoder.widths[-2]
        self.strides = encoder.strides[-2:-1]
        self.multiple = encoder.strides[-1]
        self.norm = nn.BatchNorm2d(encoder.dim) if batch_norm else nn.Identity()

    def forward(self, encoder: StagedBackbone, x: Float[Tensor, "b c H W"]) -> Maps:
        return OrderedDict({"0": pyramid(encoder, x, len(encoder.widths) - 1)[-1]})

    def outlined(
        self, encoder: StagedBackbone, regions: Float[Tensor, "r d 14 14"]
    ) -> Float[Tensor, "r e 7 7"]:
        """The encoder's last stage is called, not owned: its weights stand in the encoder."""
        return self.norm(encoder.stage(regions, len(encoder.widths) - 1))

    def pooled(
        self, encoder: StagedBackbone, regions: Float[Tensor, "r d 14 14"]
    ) -> Float[Tensor, "r e"]:
        return self.outlined(encoder, regions).mean((2, 3))


class Pyramid(nn.Module):
    """The maps of all stages, each with what is above it added."""

    rpn_depth = 1

    def __init__(self, encoder: StagedBackbone, width: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.width = width
        self.strides = (*encoder.strides, 2 * encoder.strides[-1])
        self.multiple = encoder.strides[-1]
        norm = nn.BatchNorm2d if batch_norm else None
        self.fpn = FeaturePyramidNetwork(
            list(encoder.widths), width, LastLevelMaxPool(), norm_layer=norm
        )

    def forward(self, encoder: StagedBackbone, x: Float[Tensor, "b c H W"]) -> Maps:
        maps = pyramid(encoder, x, len(encoder.widths))
        return OrderedDict(self.fpn(OrderedDict((str(i), y) for i, y in enumerate(maps))))


class TransformerPyramid(nn.Module):
    """The maps of all stages at one width, each with what it finds in itself and all others.

    Nothing is added top down before. The batch norm behind is ours; the paper's code has it inside.
    Without parts to `use` it is the bottom-up pyramid that the paper compares with.
    """

    rpn_depth = 1

    def __init__(
        self,
        encoder: StagedBackbone,
        width: int,
        *,
        batch_norm: bool,
        use: tuple[Part, ...] = ALL,
    ) -> None:
        super().__init__()
        self.width = width
        self.strides = (*encoder.strides, 2 * encoder.strides[-1])
        self.multiple = encoder.strides[-1]
        norm = nn.BatchNorm2d if batch_norm else None
        self.lateral = nn.ModuleList(
            Conv2dNormActivation(c, width, 1, norm_layer=norm, activation_layer=None)
            for c in encoder.widths
        )
        self.fpt = FeaturePyramidTransformer(width, encoder.strides, use=use)
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(width) if batch_norm else nn.Identity() for _ in encoder.widths
        )

    def forward(self, encoder: StagedBackbone, x: Float[Tensor, "b c H W"]) -> Maps:
        stages = pyramid(encoder, x, len(encoder.widths))
        maps = [lateral(y) for lateral, y in zip(self.lateral, stages, strict=True)]
        maps = [norm(y) for norm, y in zip(self.norms, self.fpt(maps), strict=True)]
        last = F.max_pool2d(maps[-1], 1, 2)
        return OrderedDict([*((str(i), y) for i, y in enumerate(maps)), ("pool", last)])


class SimplePyramid(nn.Module):
    """The last map of a plain ViT, at 4, 2, 1 and 1/2 times its size."""

    rpn_depth = 2

    def __init__(self, encoder: PatchBackbone, width: int) -> None:
        super().__init__()
        self.width = width
        p, d = encoder.patch, encoder.dim
        self.strides = tuple(p * 2**i // 4 for i in range(5))
        self.multiple = 2 * p
        four = [
            *(nn.ConvTranspose2d(d, d // 2, 2, 2), LayerNorm2d(d // 2), nn.GELU()),
            nn.ConvTranspose2d(d // 2, d // 4, 2, 2),
        ]
        two = [nn.ConvTranspose2d(d, d // 2, 2, 2)]
        self.scales = nn.ModuleList(
            nn.Sequential(
                *layers,
                *(nn.Conv2d(channels, width, 1, bias=False), LayerNorm2d(width)),
                *(nn.Conv2d(width, width, 3, 1, 1, bias=False), LayerNorm2d(width)),
            )
            for layers, channels in ((four, d // 4), (two, d // 2), ([], d), ([nn.MaxPool2d(2)], d))
        )

    def forward(self, encoder: PatchBackbone, x: Float[Tensor, "b c H W"]) -> Maps:
        y = encoder.features(x)
        maps = OrderedDict((str(i), scale(y)) for i, scale in enumerate(self.scales))
        maps["pool"] = F.max_pool2d(maps["3"], 1, 2)
        return maps


Neck = C4 | Pyramid | TransformerPyramid | SimplePyramid


def pyramid(
    encoder: StagedBackbone, x: Float[Tensor, "b c H W"], stages: int
) -> list[Float[Tensor, "b _ _ _"]]:
    """The maps after each of the first stages."""
    y, maps = encoder.stem(x), []
    for i in range(stages):
        y = encoder.stage(y, i)
        maps.append(y)
    return maps
