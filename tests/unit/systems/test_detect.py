"""Faster and Mask R-CNN around our backbones."""

import copy
from collections import OrderedDict

import boxes
import pytest
import torch
from torch import nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import roi_align

from saccade import backbones, systems
from saccade.core import Framing
from saccade.nn import norm
from saccade.recipe import BackboneConfig
from saccade.systems.detect import Detect, RoIPool, pyramid

SMALL = {
    "classes": boxes.CLASSES,
    "width": 16,
    "hidden": 32,
    "before_nms": (60, 60),
    "after_nms": (30, 20),
    "regions": 16,
    "framing": Framing(short=(48,), test_short=48, longest=64),
}
NECKS = {
    "fpn": ("resnet10_w16", 64, (4, 8, 16, 32, 64)),
    "c4": ("resnet10_w16", 64, (8, 16, 32)),
    "simple": ("vit_nano_patch8_64", 64, (4, 8, 16, 32, 64)),
}


def detect(neck="fpn", seed=0, **settings):
    name, size, anchors = NECKS[neck]
    torch.manual_seed(seed)
    stem = "auto" if neck == "simple" else "paper"
    encoder = backbones.create(BackboneConfig(name=name, image_size=size, stem=stem))
    return Detect(Detect.Config(neck=neck, **{**SMALL, "anchors": anchors, **settings}), encoder)


def test_the_stages_of_a_network_end_in_its_last_map():
    x = torch.randn(2, 3, 64, 96)
    for name, stem in (("resnet10_w16", "paper"), ("resnet10_w16", "small")):
        net = backbones.create(BackboneConfig(name=name, image_size=64, stem=stem)).eval()
        maps = pyramid(net, x, 4)
        assert torch.equal(maps[-1], net.net.forward_features(x))
        assert net.strides == ((4, 8, 16, 32) if stem == "paper" else (1, 2, 4, 8))
        for y, width, stride in zip(maps, net.widths, net.strides, strict=True):
            assert y.shape == (2, width, 64 // stride, 96 // stride)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224"])
def test_stages_equal_timms_intermediates(name):
    net = backbones.create(BackboneConfig(name=name)).eval()
    x = torch.randn(1, 3, 224, 224)
    theirs = net.net.forward_intermediates(x, intermediates_only=True, norm=False)
    for mine, other in zip(pyramid(net, x, 4), theirs, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("neck", NECKS)
def test_losses_equal_torchvisions_assembly_of_the_same_parts(neck, masks):
    system = detect(neck, masks=masks).train()

    class Body(nn.Module):
        def forward(self, x):
            return system.neck(system.encoder, x)

    still = GeneralizedRCNNTransform(
        48, 64, [0.0] * 3, [1.0] * 3, size_divisible=system.neck.multiple
    )
    still._skip_resize = True
    whole = GeneralizedRCNN(Body(), system.rpn, system.roi_heads, still)
    batch = boxes.scenes(2, masks=masks)
    targets = [
        {"boxes": b, "labels": k + 1, "masks": m}
        for b, k, m in zip(batch.boxes, batch.labels, batch.masks, strict=True)
    ]
    torch.manual_seed(1)
    theirs = whole(list(batch.images), targets)
    torch.manual_seed(1)
    step = system(batch, boxes.CLOCK)
    names = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
    assert set(step.logs) == (names | {"loss_mask"} if masks else names)
    for name, value in theirs.items():
        assert step.logs[name].item() == pytest.approx(value.item(), rel=1e-4)
    assert step.loss.item() == pytest.approx(sum(v.item() for v in theirs.values()), rel=1e-4)


@pytest.mark.parametrize("neck", NECKS)
def test_training_lowers_the_loss_on_two_pictures_and_reaches_everything(neck):
    system = detect(neck, masks=True).train()
    batch = boxes.scenes(2, masks=True)
    optimizer = torch.optim.Adam(system.parameters(), 1e-3)
    losses = []
    for step in range(12):
        torch.manual_seed(step)
        loss = system(batch, boxes.CLOCK).loss
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            idle = [n for n, p in system.named_parameters() if p.grad is None]
            unused = ("encoder.net.cls_token",) if neck == "simple" else ()
            assert [n for n in idle if n not in unused] == []
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


@pytest.mark.slow
def test_a_detector_that_knows_two_pictures_finds_their_squares():
    system = detect(seed=1, after_nms=(60, 60), batch_norm=False).train()
    norm.freeze(system.encoder)
    batch = boxes.scenes(2)
    optimizer = torch.optim.Adam([p for p in system.parameters() if p.requires_grad], 2e-3)
    for step in range(150):
        torch.manual_seed(step)
        optimizer.zero_grad()
        system(batch, boxes.CLOCK).loss.backward()
        optimizer.step()
    for found, want, labels in zip(
        system.eval().predict(batch), batch.boxes, batch.labels, strict=True
    ):
        for box, label in zip(want, labels, strict=True):
            best = found.boxes[found.labels == label][0]
            assert (best - box).abs().max() < 6


def test_boxes_are_given_in_pixels_of_the_stored_picture():
    system = detect().eval()
    system.roi_heads.score_thresh = 0.0
    plain, large = boxes.scenes(2), boxes.scenes(2)
    large.stored[:] = [(2 * h, 3 * w) for h, w in plain.stored]
    for a, b in zip(system.predict(plain), system.predict(large), strict=True):
        torch.testing.assert_close(b.boxes, a.boxes * torch.tensor([3.0, 2, 3, 2]))
        assert torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("neck", NECKS)
def test_masks_come_in_the_size_of_the_stored_picture(neck):
    system = detect(neck, masks=True).eval()
    batch = boxes.scenes(2)
    batch.stored[1] = (30, 40)
    system.roi_heads.score_thresh = 0.0
    for found, stored in zip(system.predict(batch), batch.stored, strict=True):
        n = len(found.scores)
        assert n > 0
        assert found.masks is not None
        assert found.masks.shape == (n, *stored)
        assert (found.scores.diff() <= 0).all()
        assert set(found.labels.tolist()) <= {0, 1}
        assert (found.boxes[:, 2] <= stored[1] + 1e-3).all()


def test_regions_are_pooled_from_the_level_that_fits_their_size():
    maps = OrderedDict((str(i), torch.randn(2, 3, 64 >> i, 64 >> i)) for i in range(4))
    regions = [
        torch.tensor([[3.0, 5, 40, 60], [0, 0, 250, 250]]),
        torch.tensor([[9.0, 9, 130, 99]]),
    ]
    found = RoIPool(7, (4, 8, 16, 32))(maps, regions, [(256, 256)] * 2)
    row = 0
    for picture, some in enumerate(regions):
        for region in some:
            side = float(((region[2] - region[0]) * (region[3] - region[1])) ** 0.5)
            level = min(max(int(torch.tensor(side / 224).log2().floor()) + 4, 2), 5) - 2
            want = roi_align(
                maps[str(level)][picture : picture + 1],
                [region[None]],
                7,
                1 / (4 << level),
                aligned=True,
            )
            assert torch.equal(found[row], want[0])
            row += 1


def test_the_head_of_c4_is_the_last_stage_batch_norm_and_a_mean():
    system = detect("c4").eval()
    regions = torch.randn(3, system.encoder.widths[2], 14, 14)
    want = system.neck.norm(system.encoder.net.layer4(regions)).mean((2, 3))
    assert torch.equal(system.roi_heads.box_head(regions), want)
    assert system.neck.strides == (16,)


def test_a_copy_of_c4_uses_its_own_last_stage():
    system = detect("c4").eval()
    other = copy.deepcopy(system)
    for p in system.encoder.net.layer4.parameters():
        nn.init.constant_(p, 0.1)
    regions = torch.randn(3, system.encoder.widths[2], 14, 14)
    assert not torch.equal(system.roi_heads.box_head(regions), other.roi_heads.box_head(regions))


@pytest.mark.parametrize("neck", NECKS)
def test_each_weight_is_registered_once(neck):
    state = detect(neck, masks=True).state_dict()
    assert len({t.data_ptr() for t in state.values() if t.numel()}) == len(
        [t for t in state.values() if t.numel()]
    )


def test_norm_layers_are_not_decayed_and_biases_are():
    system = detect("simple")
    decayed, exempt = system.groups()
    assert (decayed.decay_scale, exempt.decay_scale) == (1.0, 0.0)
    kinds = {"BatchNorm2d", "LayerNorm", "LayerNorm2d"}
    norms = [n for n, m in system.named_modules() if type(m).__name__ in kinds]
    want = {f"{n}.{end}" for n in norms for end in ("weight", "bias")}
    assert {n for n, _ in exempt.params} == want
    assert "rpn.head.cls_logits.bias" in {n for n, _ in decayed.params}


def test_what_cannot_be_built_is_named():
    with pytest.raises(ValueError, match="simple needs a plain ViT"):
        Detect(Detect.Config(neck="simple", **SMALL), detect().encoder)
    with pytest.raises(ValueError, match="choose simple"):
        Detect(Detect.Config(**SMALL), detect("simple").encoder)
    with pytest.raises(ValueError, match="anchors: 2 sizes for 5"):
        detect(anchors=(8, 16))
    with pytest.raises(ValueError, match=r"system\.classes"):
        detect(classes=())


def test_recipes_build_their_shapes_on_paper():
    recipes = systems.recipes("detect")
    assert {"small", "voc-c4", "coco-fpn-1x", "coco-fpn-2x", "coco-c4-2x", "coco-vit"} <= set(
        recipes
    )
    assert recipes["voc-c4"].steps == 24_000
    assert recipes["voc-c4"].optim.schedule.drops == pytest.approx((0.75, 22 / 24))
