"""Faster and Mask R-CNN: propose boxes, then name, refine and outline what is in them.

Ren et al. 2015, arXiv:1506.01497; He et al. 2017, arXiv:1703.06870.
    loss = objectness + anchor shift + class + box shift (+ mask) (+ duplicates)
The proposal network, the heads, their losses and NMS are torchvision's. Necks (detector/necks.py):
    c4      one map of stride 16; the last stage of the encoder is the head, run on every region
    fpn     every stage, top down; two fully connected layers are the head
    fpt     every stage, by a feature pyramid transformer in place of that; the same head
    bfp     every stage for itself: the pyramid that fpt's paper counts its gain over; the same head
    simple  the last map of a plain ViT at four scales; convolutions with layer norm are the head
Attention in the head: `relation` behind each fully connected layer, `roi=lrf` in place of RoIAlign,
`dedup=learned` in place of NMS (attention/object_relation.py, learned_region_features.py,
duplicate_removal.py); lrf-prior starts near RoIAlign's bins, which suits few pictures. The removal
takes the first 100 detections of a class, 150 where there is a pyramid, as the paper does.
As MoCo transfers (arXiv:1911.05722, section 4.2): all layers train, batch norm too, there is batch
norm in the pyramid and after the last stage of c4, and regions are aligned to half pixels.
Not the same as detectron2: both box losses are smooth below 1/9, torchvision's constant, where the
sheet has L1; batches mix upright and wide pictures. Not the same as ViTDet: all blocks of the ViT
attend globally, learning rates do not decay over its layers, and pictures are not cropped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import (
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    TwoMLPHead,
)
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, paste_masks_in_image
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import resize_boxes

from ..attention import DuplicateRemoval, LearnedRegionFeatures, RelationHead
from ..core import (
    Backbone,
    Clock,
    Found,
    Framing,
    Group,
    PatchBackbone,
    Scenes,
    StagedBackbone,
    Step,
    System,
)
from ..detector import regions
from ..detector.necks import C4, Neck, Pyramid, SimplePyramid, TransformerPyramid
from ..detector.necks import pyramid as pyramid  # public here
from ..detector.regions import RoIPool
from ..recipe import BackboneConfig, Optim, Schedule, SystemRecipe

HEADS = 16  # of the relation


@dataclass(frozen=True, kw_only=True)
class Head:
    """Attention between regions and pixels, and between regions."""

    relation: bool = False  # behind each fully connected layer
    roi: Literal["align", "lrf", "lrf-prior"] = "align"
    dedup: Literal["nms", "learned"] = "nms"


class Detect(System):
    domain = "detection"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        classes: tuple[str, ...] = ()  # names, taken from the data
        neck: Literal["c4", "fpn", "fpt", "bfp", "simple"] = "fpn"
        head: Head = field(default_factory=Head)
        masks: bool = False
        framing: Framing = field(default_factory=Framing)
        anchors: tuple[int, ...] = (32, 64, 128, 256, 512)  # pixels: one a level, c4 has them all
        width: int = 256  # channels of the pyramid and of the mask head
        hidden: int = 1024  # of the box head
        batch_norm: bool = True  # in the pyramid; after the last stage of c4
        before_nms: tuple[int, int] = (2000, 1000)  # proposals of a level, training and test
        after_nms: tuple[int, int] = (1000, 1000)  # proposals of a picture
        regions: int = 512  # of a picture that train the heads

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = encoder
        self.neck = _neck(cfg, encoder)
        levels = len(self.neck.strides)
        if cfg.neck != "c4" and len(cfg.anchors) != levels:
            raise ValueError(
                f"setting system.anchors: {len(cfg.anchors)} sizes for {levels} levels; "
                "give one for each"
            )
        sizes = (cfg.anchors,) if cfg.neck == "c4" else tuple((a,) for a in cfg.anchors)
        anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
        self.rpn = RegionProposalNetwork(
            anchors,
            RPNHead(self.neck.width, anchors.num_anchors_per_location()[0], self.neck.rpn_depth),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n=dict(zip(("training", "testing"), cfg.before_nms, strict=True)),
            post_nms_top_n=dict(zip(("training", "testing"), cfg.after_nms, strict=True)),
            nms_thresh=0.7,
        )
        self.roi_heads = RoIHeads(
            **_heads(cfg, self.neck, encoder),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=cfg.regions,
            positive_fraction=0.25,
            bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=100,
        )
        self.removal = None
        if cfg.head.dedup == "learned":
            features, first = (encoder.dim, 100) if cfg.neck == "c4" else (cfg.hidden, 150)
            self.removal = DuplicateRemoval(features, first=first)

    def forward(self, batch: Scenes, clock: Clock) -> Step:
        targets = [
            {"boxes": boxes, "labels": labels + 1}  # torchvision's 0 is the background
            for boxes, labels in zip(batch.boxes, batch.labels, strict=True)
        ]
        if self.cfg.masks:
            for target, masks in zip(targets, batch.masks, strict=True):
                target["masks"] = masks
        _, losses = self._run(batch, targets)
        return Step(sum(losses.values(), torch.zeros((), device=batch.images.device)), losses)

    @torch.no_grad()
    def predict(self, inputs: Scenes) -> list[Found]:
        """What is in each picture; the caller has put the system into evaluation mode."""
        detections, _ = self._run(inputs, None)
        found = []
        for one, size, stored in zip(detections, inputs.sizes, inputs.stored, strict=True):
            boxes = resize_boxes(one["boxes"], list(size), list(stored))
            masks = None
            if self.cfg.masks:
                masks = paste_masks_in_image(one["masks"], boxes, stored)[:, 0] > 0.5
            found.append(
                Found(boxes=boxes, labels=one["labels"] - 1, scores=one["scores"], masks=masks)
            )
        return found

    def groups(self) -> Iterable[Group]:
        """Norm layers are not decayed."""
        norms = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)
        inside = [m for m in self.modules() if isinstance(m, norms)]
        exempt = {id(p) for m in inside for p in m.parameters(recurse=False)}
        named = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        yield Group([(n, p) for n, p in named if id(p) not in exempt])
        yield Group([(n, p) for n, p in named if id(p) in exempt], decay_scale=0.0)

    def _run(
        self, batch: Scenes, targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections in evaluation, losses in training."""
        height, width = batch.images.shape[-2:]
        multiple = self.neck.multiple
        x = F.pad(batch.images, (0, -width % multiple, 0, -height % multiple))
        maps = self.neck(self.encoder, x)
        pictures = ImageList(x, batch.sizes)
        proposals, first = self.rpn(pictures, maps, targets)
        if not self.cfg.head.relation and self.removal is None:
            detections, second = self.roi_heads(maps, proposals, batch.sizes, targets)
            return detections, {**first, **second}
        parts = (self.roi_heads, self.removal, maps, proposals, batch.sizes)
        if targets is None:
            return regions.detections(*parts), first
        return [], {**first, **regions.losses(*parts, targets)}


def _neck(cfg: Detect.Config, encoder: Backbone) -> Neck:
    if not cfg.classes:
        raise ValueError("setting system.classes is empty; they come from the data")
    if cfg.neck == "simple":
        if not isinstance(encoder, PatchBackbone) or encoder.patch % 4:
            raise ValueError(
                "setting system.neck=simple needs a plain ViT whose patches divide by 4, "
                "such as vit_base_patch16_224; choose fpn for others"
            )
        return SimplePyramid(encoder, cfg.width)
    if not isinstance(encoder, StagedBackbone):
        raise ValueError(
            f"setting system.neck={cfg.neck} needs a backbone in stages, such as resnet50; "
            "choose simple for a plain ViT"
        )
    match cfg.neck:
        case "c4":
            return C4(encoder, batch_norm=cfg.batch_norm)
        case "fpn":
            return Pyramid(encoder, cfg.width, batch_norm=cfg.batch_norm)
        case "fpt":
            _check_even(cfg, "fpt splits channels in two")
            return TransformerPyramid(encoder, cfg.width, batch_norm=cfg.batch_norm)
        case "bfp":
            return TransformerPyramid(encoder, cfg.width, batch_norm=cfg.batch_norm, use=())


def _check_even(cfg: Detect.Config, reason: str) -> None:
    if cfg.width % 2:
        raise ValueError(f"setting system.width: {cfg.width} is odd and {reason}; make it even")


def _heads(cfg: Detect.Config, neck: Neck, encoder: Backbone) -> dict[str, Any]:
    """Arguments of torchvision's RoIHeads."""
    classes = len(cfg.classes) + 1
    if isinstance(neck, C4):
        return _c4_heads(cfg, neck, encoder, classes)
    strides = neck.strides[:-1]
    heads: dict[str, Any] = {
        "box_roi_pool": _pool(cfg, neck, 7, strides),
        "box_head": _box_head(cfg),
        "box_predictor": FastRCNNPredictor(cfg.hidden, classes),
    }
    if cfg.masks:
        norm = LayerNorm2d if cfg.neck == "simple" else None
        heads |= {
            "mask_roi_pool": _pool(cfg, neck, 14, strides),
            "mask_head": MaskRCNNHeads(cfg.width, [cfg.width] * 4, 1, norm),
            "mask_predictor": MaskRCNNPredictor(cfg.width, cfg.width, classes),
        }
    return heads


def _c4_heads(cfg: Detect.Config, neck: C4, encoder: Backbone, classes: int) -> dict[str, Any]:
    """The same, of regions that go through the encoder's last stage."""
    assert isinstance(encoder, StagedBackbone)
    if cfg.head.relation:
        raise ValueError(
            "setting system.head.relation: the head of c4 has no fully connected layers; "
            "choose system.neck=fpn"
        )
    heads: dict[str, Any] = {
        "box_roi_pool": _pool(cfg, neck, 14, neck.strides),
        "box_head": partial(neck.pooled, encoder),
        "box_predictor": FastRCNNPredictor(encoder.dim, classes),
    }
    if cfg.masks:
        heads |= {
            "mask_roi_pool": _pool(cfg, neck, 14, neck.strides),
            "mask_head": partial(neck.outlined, encoder),
            "mask_predictor": MaskRCNNPredictor(encoder.dim, cfg.width, classes),
        }
    return heads


def _pool(cfg: Detect.Config, neck: Neck, size: int, strides: tuple[int, ...]) -> RoIPool:
    if cfg.head.roi == "align":
        return RoIPool(size, strides)
    _check_even(cfg, "head.roi has sines and cosines")
    learned = LearnedRegionFeatures(
        neck.width,
        size,
        embedding=cfg.width,
        width=cfg.width,
        prior=cfg.head.roi == "lrf-prior",
    )
    return RoIPool(size, strides, learned)


def _box_head(cfg: Detect.Config) -> nn.Module:
    """What makes a vector of a region of a pyramid."""
    shape = (cfg.width, 7, 7)
    widths = (cfg.width * 7 * 7, cfg.hidden, cfg.hidden)
    if not cfg.head.relation:
        if cfg.neck != "simple":
            return TwoMLPHead(*widths[:2])
        convs = [cfg.width] * 4
        return FastRCNNConvFCHead(shape, convs, [cfg.hidden], norm_layer=LayerNorm2d)
    if cfg.hidden % HEADS:
        raise ValueError(
            f"setting system.hidden: {cfg.hidden} does not divide into the relation's {HEADS} "
            "heads; choose a multiple"
        )
    if cfg.neck != "simple":
        return RelationHead(nn.Flatten(), widths)
    convs = FastRCNNConvFCHead(shape, [cfg.width] * 4, [], norm_layer=LayerNorm2d)
    return RelationHead(convs, widths[:2])


R50 = BackboneConfig(name="resnet50")
VOC_STEPS = Schedule(shape="steps", drops=(18 / 24, 22 / 24), warmup_steps=100)


def _coco(drops: tuple[float, float]) -> Optim:
    """detectron2's schedule; batch norm and all layers train, as in MoCo's transfers."""
    schedule = Schedule(shape="steps", drops=drops, warmup_steps=1000)
    return Optim(lr=0.02, lr_rule="linear-16", schedule=schedule)


C4_MASKS = Detect.Config(neck="c4", masks=True, before_nms=(12000, 6000), after_nms=(2000, 1000))
FPN_MASKS = Detect.Config(masks=True)
E2 = "arXiv:1911.05722, section 4.2; detectron2's Mask R-CNN baselines"
RECIPES = {
    "small": SystemRecipe(
        system=Detect.Config(
            framing=Framing(short=(160, 176, 192, 208, 224), test_short=192, longest=320),
            anchors=(16, 32, 64, 128, 256),
            width=64,
            hidden=256,
            before_nms=(500, 300),
            after_nms=(200, 100),
            regions=64,
        ),
        backbone=BackboneConfig(name="resnet10_w32", image_size=64, stem="paper"),
        optim=Optim(lr=0.04, lr_rule="linear-16", schedule=Schedule(warmup_steps=50)),
        epochs=20,
        batch_size=8,
        source="ours: minutes on two cores",
    ),
    "voc-c4": SystemRecipe(
        system=Detect.Config(
            neck="c4",
            framing=Framing(short=tuple(range(480, 801, 32))),
            before_nms=(12000, 6000),
            after_nms=(2000, 1000),
        ),
        backbone=R50,
        optim=Optim(lr=0.02, lr_rule="linear-16", schedule=VOC_STEPS),
        steps=24_000,
        batch_size=16,
        precise_steps=200,
        source="arXiv:1911.05722, table 2: MoCo 55.9 AP on VOC07 test, supervised 53.5",
    ),
    "coco-c4-1x": SystemRecipe(
        system=C4_MASKS,
        backbone=R50,
        optim=_coco((60 / 90, 80 / 90)),
        steps=90_000,
        batch_size=16,
        precise_steps=200,
        source=E2,
    ),
    "coco-c4-2x": SystemRecipe(
        system=C4_MASKS,
        backbone=R50,
        optim=_coco((120 / 180, 160 / 180)),
        steps=180_000,
        batch_size=16,
        precise_steps=200,
        source=E2,
    ),
    "coco-fpn-1x": SystemRecipe(
        system=FPN_MASKS,
        backbone=R50,
        optim=_coco((60 / 90, 80 / 90)),
        steps=90_000,
        batch_size=16,
        precise_steps=200,
        source=E2,
    ),
    "coco-fpn-2x": SystemRecipe(
        system=FPN_MASKS,
        backbone=R50,
        optim=_coco((120 / 180, 160 / 180)),
        steps=180_000,
        batch_size=16,
        precise_steps=200,
        source=E2,
    ),
    "coco-vit": SystemRecipe(
        system=Detect.Config(neck="simple", masks=True, batch_norm=False),
        backbone=BackboneConfig(name="vit_base_patch16_224", drop_path=0.1),
        optim=Optim(
            name="adamw",
            lr=1e-4,
            lr_rule="none",
            weight_decay=0.1,
            schedule=Schedule(shape="steps", drops=(0.889, 0.963), warmup_steps=250),
        ),
        epochs=100,
        batch_size=64,
        source="arXiv:2203.16527, appendix A.2",
    ),
}
