"""timm's networks as `Backbone` and `PatchBackbone`.

The pooled vector is timm's own: the CLS token after the norm for plain ViTs, the mean of the map
for the rest, that of both tokens for a distilled DeiT. Two families norm after pooling (ConvNeXt,
ViTs without CLS): there `features`, `encode` and `layers` norm every position.

GELU is exact, where Google's code has an approximation by tanh. Swin pads maps to whole windows,
and its padding is seen.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import Any, Literal

import timm
import torch
from jaxtyping import Float
from timm.layers.attention import Attention
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import model_entrypoint
from timm.models.beit import Beit
from timm.models.resnet import ResNet
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ..attention.local_relation import LocalRelation
from ..core import Backbone, PatchBackbone, StagedBackbone
from ..nn.windows import received, unfused, window_cells
from ..recipe import BackboneConfig
from . import names
from .presets import OWN, PRESETS
from .relative import RelativeViT

Family = Literal["resnet", "convnext", "swin", "vit"]

# The family of each timm module, and what makes its networks take pictures of any size.
MODULES: dict[str, tuple[Family, dict[str, Any]]] = {
    "resnet": ("resnet", {}),
    "convnext": ("convnext", {}),
    "swin_transformer": ("swin", {"strict_img_size": False}),
    "swin_transformer_v2": ("swin", {"strict_img_size": False}),
    "vision_transformer": ("vit", {"dynamic_img_size": True}),
    "vision_transformer_hybrid": ("vit", {"dynamic_img_size": True}),
    "deit": ("vit", {"dynamic_img_size": True}),
    "eva": ("vit", {"dynamic_img_size": True}),
    "beit": ("vit", {}),
}

# Layers other than convolutions that make maps smaller: they have no dilated form.
SHRINKING = (nn.AvgPool2d, nn.MaxPool2d, LocalRelation)


class StagedNet(StagedBackbone):
    """ResNet, ConvNeXt and Swin."""

    net: Any  # timm's model
    added: frozenset[str]  # state-dict keys of blocks that a trained network of timm can take in

    def __init__(
        self, net: nn.Module, family: Family, cfg: BackboneConfig, added: frozenset[str]
    ) -> None:
        super().__init__()
        self.net = net
        self.added = added
        self.family = family
        self.dim = self.net.num_features
        self.channels = cfg.channels
        self.image_size = cfg.image_size
        stages = self.net.feature_info[-4:]  # a ResNet's stem stands in front
        self.widths = tuple(s["num_chs"] for s in stages)
        shrunk = 4 if family == "resnet" and has_small_stem(cfg) else 1
        self.strides = tuple(s["reduction"] // shrunk for s in stages)
        self.stride = self.strides[-1]
        self.patch = self._own_pixels()
        self.looks = family == "swin"

    def stem(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d h w"]:
        net = self.net
        match self.family:
            case "resnet":
                return net.maxpool(net.act1(net.bn1(net.conv1(x))))
            case "convnext":
                return net.stem(x)
            case _:
                return net.patch_embed(x).permute(0, 3, 1, 2)  # [B, h, w, D] -> [B, D, h, w]

    def stage(self, y: Float[Tensor, "b d h w"], i: int) -> Float[Tensor, "b e i j"]:
        net = self.net
        match self.family:
            case "resnet":
                return (net.layer1, net.layer2, net.layer3, net.layer4)[i](y)
            case "convnext":
                return net.stages[i](y)
            case _:
                return net.layers[i](y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def dilate(self, stages: int) -> None:
        first = len(self.strides) - stages
        net, resnet = self.net, self.family == "resnet" and 0 < first < len(self.strides)
        layers = (net.layer1, net.layer2, net.layer3, net.layer4)[first:] if resnet else ()
        inside = [list(layer.modules()) for layer in layers]
        if not inside or any(isinstance(m, SHRINKING) for each in inside for m in each):
            raise ValueError(
                f"setting dilated={stages}: up to 3 stages of a ResNet whose convolutions shrink "
                "the maps can dilate; set it to 0, or choose one, such as resnet50"
            )
        for k, each in enumerate(inside):
            for conv in (m for m in each if isinstance(m, nn.Conv2d)):
                conv.stride, (kernel, _) = (1, 1), conv.kernel_size
                if kernel > 1:
                    conv.dilation = (2 ** (k + 1),) * 2
                    conv.padding = (kernel // 2 * 2 ** (k + 1),) * 2
        self.stride = self.strides[first - 1]
        self.strides = (*self.strides[:first], *(self.stride,) * stages)

    def encode(self, y: Float[Tensor, "b d h w"]) -> Float[Tensor, "b e i j"]:
        for i in range(len(self.widths)):
            y = self.stage(y, i)
        match self.family:
            case "convnext":
                return self.net.head.norm(self.net.norm_pre(y))
            case "swin":
                return self.net.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            case _:
                return y

    def encode_and_look(
        self, y: Float[Tensor, "b d h w"]
    ) -> tuple[Float[Tensor, "b e i j"], Float[Tensor, "b n"]]:
        if not self.looks:
            raise ValueError("setting backbone: attention is asked for; choose a ViT or a Swin")
        block, weights = self.net.layers[-1].blocks[-1], []
        with unfused(block.attn, lambda module, given, made: weights.append(made)):
            last = self.encode(y)
        grid = (last.shape[2], last.shape[3])
        return last, received(weights[0], window_cells(grid, block.window_size, block.shift_size))

    def features(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d h w"]:
        return self.encode(self.stem(x))

    def forward(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d"]:
        return self.net(x)

    def _own_pixels(self) -> int:
        """The stem's patches, where they do not overlap."""
        match self.family:
            case "resnet":
                return 0
            case "convnext":
                first = next(m for m in self.net.stem.modules() if isinstance(m, nn.Conv2d))
                size, step = first.kernel_size[0], first.stride[0]
                return size if size == step else 0
            case _:
                return self.net.patch_embed.patch_size[0]


class FeatureNet(Backbone):
    """A network known by its last map: ViTs with rotary positions, a ResNet stem or two heads."""

    net: Any  # timm's model

    def __init__(self, net: nn.Module, cfg: BackboneConfig) -> None:
        super().__init__()
        self.net = net
        self.dim = self.net.num_features
        self.channels = cfg.channels
        self.image_size = cfg.image_size
        self.stride = self.net.patch_embed.feat_ratio()
        plain = type(self.net.patch_embed) is PatchEmbed  # others pad
        self.patch = self.net.patch_embed.patch_size[0] if plain else 1

    def features(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d h w"]:
        _check_pixels(x, self.patch)
        y = self.net.forward_features(x)
        y = self.net.fc_norm(y[:, self.net.num_prefix_tokens :])  # [B, N, D]
        return y.mT.unflatten(2, self.net.patch_embed.dynamic_feat_size(x.shape[-2:]))

    def forward(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d"]:
        _check_pixels(x, self.patch)
        return self.net(x)


class ViT(PatchBackbone):
    """A plain vision transformer with learned absolute positions."""

    net: VisionTransformer

    def __init__(self, net: VisionTransformer, cfg: BackboneConfig) -> None:
        super().__init__()
        self.net = net
        self.dim = net.num_features
        self.channels = cfg.channels
        self.image_size = cfg.image_size
        self.patch = self.stride = net.patch_embed.patch_size[0]
        self.grid = net.patch_embed.grid_size
        self.depth = len(net.blocks)
        self.prefix = net.num_prefix_tokens

    def tokens(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b n d"]:
        height, width = _check_pixels(x, self.patch)
        y = self.net.patch_embed(x)  # [B, h, w, D]
        return y.flatten(1, 2) + self.positions(height, width)

    def positions(self, height: int, width: int) -> Float[Tensor, "1 n d"]:
        grid, table = (height // self.patch, width // self.patch), self._table()[:, self.placed :]
        if grid == tuple(self.grid):
            return table
        return resample_abs_pos_embed(table, list(grid), list(self.grid), num_prefix_tokens=0)

    def encode(self, tokens: Float[Tensor, "b m d"]) -> Float[Tensor, "b p d"]:
        return self._norm(self.net.blocks(self._prefixed(tokens)))

    def encode_and_look(
        self, tokens: Float[Tensor, "b m d"]
    ) -> tuple[Float[Tensor, "b p d"], Float[Tensor, "b heads p"]]:
        block = self._last_block()
        y = self.net.blocks[:-1](self._prefixed(tokens))
        q, k = self._queries_and_keys(block, y)
        return self._norm(block(y)), (q[:, :, :1] @ k.mT).softmax(-1).squeeze(2)

    def features(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d h w"]:
        y = self.encode(self.tokens(x))[:, self.prefix :]  # [B, N, D]
        return y.mT.unflatten(2, (x.shape[-2] // self.patch, x.shape[-1] // self.patch))

    def forward(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d"]:
        y = self.net.norm(self.net.blocks(self._prefixed(self.tokens(x))))
        return self.net.forward_head(y)

    def layers(
        self, x: Float[Tensor, "b c H W"], last: int, *, normed: bool = True
    ) -> list[Float[Tensor, "b p d"]]:
        depth = len(self.net.blocks)
        if not 1 <= last <= depth:
            raise ValueError(f"last={last}: the backbone has {depth} blocks; choose 1 to {depth}")
        y = self._prefixed(self.tokens(x))
        found = []
        for i, block in enumerate(self.net.blocks):
            y = block(y)
            if i >= depth - last:
                found.append(self._norm(y) if normed else y)
        return found

    def attention(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b heads p p"]:
        block = self._last_block()
        y = self.net.blocks[:-1](self._prefixed(self.tokens(x)))
        q, k = self._queries_and_keys(block, y)
        return (q @ k.mT).softmax(-1)

    @torch.no_grad()
    def fix_positions(self, table: Float[Tensor, "n d"]) -> None:
        positions = self._table()
        positions[:, : self.placed].zero_()
        positions[:, self.placed :] = table
        positions.requires_grad_(False)

    def projection(self) -> nn.Module:
        return self.net.patch_embed.proj

    @property
    def heads(self) -> int:
        """Of the last block's attention."""
        block: Any = self.net.blocks[-1]
        return block.attn.num_heads

    @property
    def placed(self) -> int:
        """Prefix tokens that have a row in the position table."""
        return 0 if self.net.no_embed_class else self.prefix

    def _table(self) -> nn.Parameter:
        assert self.net.pos_embed is not None  # `build` takes no others
        return self.net.pos_embed

    def _last_block(self) -> Block:
        block = self.net.blocks[-1]
        if not (isinstance(block, Block) and type(block.attn) is Attention):
            raise ValueError(
                f"backbone: attention of {type(block).__name__} blocks cannot be read out; "
                "choose a ViT with plain blocks, such as vit_small_patch16_224"
            )
        return block

    def _queries_and_keys(
        self, block: Block, y: Float[Tensor, "b p d"]
    ) -> tuple[Float[Tensor, "b heads p e"], Float[Tensor, "b heads p e"]]:
        """Of a block's attention, scaled: timm's fused path keeps no weights."""
        a: Any = block.attn
        q, k, _ = (
            a.qkv(block.norm1(y)).unflatten(-1, (3, a.num_heads, a.head_dim)).permute(2, 0, 3, 1, 4)
        )
        return a.q_norm(q) * a.scale, a.k_norm(k)

    def _prefixed(self, tokens: Float[Tensor, "b m d"]) -> Float[Tensor, "b p d"]:
        net = self.net
        front: list[Tensor] = [t for t in (net.cls_token, net.reg_token) if t is not None]
        if front:
            y = torch.cat(front, 1)  # [1, prefix, D]
            if self.placed:
                y = y + self._table()[:, : self.placed]
            tokens = torch.cat([y.expand(tokens.shape[0], -1, -1), tokens], 1)
        return net.norm_pre(tokens)

    def _norm(self, y: Float[Tensor, "b p d"]) -> Float[Tensor, "b p d"]:
        return self.net.fc_norm(self.net.norm(y))  # one of them is the identity


def arguments(cfg: BackboneConfig) -> tuple[str, dict[str, Any]]:
    """timm's name for the architecture and the constructor arguments that rebuild it."""
    if cfg.name in OWN:
        return cfg.name, {}
    family, anysize = MODULES[_module(cfg.name)]
    preset = PRESETS.get(cfg.name)
    args = {"num_classes": 0, "in_chans": cfg.channels, **anysize}
    if family in ("swin", "vit"):
        args["img_size"] = cfg.image_size
    if preset is None:
        return cfg.name, args
    return preset.timm, {**args, **preset.changes}


def build(cfg: BackboneConfig, pretrained: bool = False) -> Backbone:
    """The network of that name; `pretrained` downloads timm's weights."""
    name, args = arguments(cfg)
    family, _ = MODULES[_module(cfg.name)]
    if cfg.layer != "last":
        raise ValueError(
            f"backbone.layer={cfg.layer}: {cfg.name} is no transformer over colors and has no "
            "choice; leave it at last, or choose one such as igpt_nano_32"
        )
    try:
        net = timm.create_model(name, pretrained, drop_path_rate=cfg.drop_path, **args)
    except AssertionError:  # of a ResNet stem before patches
        raise ValueError(
            f"backbone.image_size={cfg.image_size} does not divide into the patches of "
            f"{cfg.name!r}; choose {native_size(cfg.name)}, which it was made for"
        ) from None
    if has_small_stem(cfg):
        if not isinstance(net, ResNet):
            raise ValueError(
                f"backbone.stem=small is for ResNets and {cfg.name!r} has patches; "
                "leave stem at auto, or choose a ResNet"
            )
        _shrink_stem(net, cfg.channels)
    added = _alter(net, cfg.name)
    if family != "vit":
        return StagedNet(net, family, cfg, added)
    if type(net) is VisionTransformer and type(net.patch_embed) is PatchEmbed:
        found = ViT(net, cfg)
    else:
        found = RelativeViT(net, cfg) if isinstance(net, Beit) else FeatureNet(net, cfg)
    _check_grid(cfg, found.patch)
    return found


def has_small_stem(cfg: BackboneConfig) -> bool:
    """A 3x3 convolution without stride or pooling in front, for pictures of 64 pixels or less."""
    if cfg.name in OWN:
        return False
    small = MODULES[_module(cfg.name)][0] == "resnet" and cfg.image_size <= 64
    return cfg.stem == "small" or (cfg.stem == "auto" and small)


def native_size(name: str) -> int:
    """Pixels the network of that name was designed for."""
    if name in PRESETS or name in OWN:
        return (PRESETS.get(name) or OWN[name]).image_size
    _module(name)
    found = timm.get_pretrained_cfg(name)
    return found.input_size[-1] if found else BackboneConfig().image_size


def _module(name: str) -> str:
    """timm's module of a preset or a timm name; an unknown name raises ValueError."""
    known = PRESETS[name].timm if name in PRESETS else name.partition(".")[0]
    if not timm.is_model(known):
        close = difflib.get_close_matches(name, [*names(), *timm.list_models()], 1, 0.5)
        hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(names())}"
        raise ValueError(f"unknown backbone {name!r}; {hint}")
    module = model_entrypoint(known).__module__.rpartition(".")[2]
    if module not in MODULES:
        raise ValueError(
            f"backbone {name!r} is of timm's family {module}; "
            "choose a ResNet, ViT, Swin or ConvNeXt"
        )
    return module


def _check_pixels(x: Float[Tensor, "b c H W"], patch: int) -> tuple[int, int]:
    """Height and width, which divide into patches."""
    height, width = x.shape[-2:]
    if height % patch or width % patch:
        raise ValueError(
            f"image_size: {height} x {width} pixels do not divide into patches of "
            f"{patch}; choose multiples of {patch}"
        )
    return height, width


def _check_grid(cfg: BackboneConfig, patch: int) -> None:
    if cfg.image_size % patch:
        low = cfg.image_size // patch * patch
        near = f"{low} or {low + patch}" if low else f"{patch}"
        raise ValueError(
            f"backbone.image_size={cfg.image_size} does not divide into patches of {patch}; "
            f"choose {near}"
        )


def _alter(net: Any, name: str) -> frozenset[str]:
    """Put in the layers of the family, if the preset has one; keys that only add to timm's."""
    preset = PRESETS.get(name)
    if preset is None or not preset.family:
        return frozenset()
    before = set(net.state_dict())
    import_module(f".{preset.family}", __package__).alter(net, **preset.layers)
    after = set(net.state_dict())
    return frozenset(after - before) if before <= after else frozenset()


def _shrink_stem(net: Any, channels: int) -> None:
    net.conv1 = nn.Conv2d(channels, net.bn1.num_features, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")  # as timm's
    net.maxpool = nn.Identity()
