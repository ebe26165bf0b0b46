"""The detector with attention in its neck and heads: every option with every other."""

import json
from itertools import product

import boxes
import pytest
import torch
from torchvision.ops import box_iou

from saccade import backbones, config
from saccade.core import Framing
from saccade.nn import norm
from saccade.recipe import BackboneConfig
from saccade.systems.detect import Detect, Head

SMALL = {
    "classes": boxes.CLASSES,
    "width": 8,
    "hidden": 16,
    "before_nms": (30, 30),
    "after_nms": (12, 12),
    "regions": 8,
    "framing": Framing(short=(48,), test_short=48, longest=64),
}
NECKS = {
    "fpn": ("resnet10_w16", (4, 8, 16, 32, 64)),
    "fpt": ("resnet10_w16", (4, 8, 16, 32, 64)),
    "bfp": ("resnet10_w16", (4, 8, 16, 32, 64)),
    "c4": ("resnet10_w16", (8, 16, 32)),
    "simple": ("vit_nano_patch8_64", (4, 8, 16, 32, 64)),
}
MIXES = [
    (neck, Head(relation=relation, roi=roi, dedup=dedup))
    for neck, relation, roi, dedup in product(
        NECKS, (False, True), ("align", "lrf", "lrf-prior"), ("nms", "learned")
    )
    if neck != "bfp" and not (neck == "c4" and relation)
] + [("bfp", Head())]


def case(neck, head):
    """All options at once are tried always, the other mixes where slow tests are."""
    every = head == Head(relation=neck != "c4", roi="lrf", dedup="learned") or neck == "bfp"
    name = "+".join([neck, head.roi, head.dedup, *(["relation"] if head.relation else [])])
    return pytest.param(neck, head, id=name, marks=() if every else pytest.mark.slow)


def detect(neck="fpn", head=Head(), **settings):  # noqa: B008
    name, anchors = NECKS[neck]
    torch.manual_seed(0)
    stem = "auto" if neck == "simple" else "paper"
    encoder = backbones.create(BackboneConfig(name=name, image_size=64, stem=stem))
    cfg = Detect.Config(neck=neck, head=head, **{**SMALL, "anchors": anchors, **settings})
    return Detect(cfg, encoder)


@pytest.mark.parametrize(("neck", "head"), [case(*mix) for mix in MIXES])
def test_every_mix_trains_predicts_and_survives_its_state(neck, head):
    system = detect(neck, head).train()
    step = system(boxes.scenes(2), boxes.CLOCK)
    assert ("loss_duplicates" in step.logs) == (head.dedup == "learned")
    step.loss.backward()
    idle = [n for n, p in system.named_parameters() if p.grad is None]
    assert [n for n in idle if "cls_token" not in n] == []
    state = system.state_dict()
    pointers = [t.data_ptr() for t in state.values() if t.numel()]
    assert len(pointers) == len(set(pointers))

    other = detect(neck, head)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    other.load_state_dict(state)
    for one in (system, other):
        one.eval().roi_heads.score_thresh = 0.0
    found, again = (s.predict(boxes.scenes(2)) for s in (system, other))
    for a, b in zip(found, again, strict=True):
        assert len(a.scores) > 0
        assert torch.equal(a.boxes, b.boxes)
        assert torch.equal(a.scores, b.scores)
        assert (a.scores.diff() <= 0).all()
        assert set(a.labels.tolist()) <= {0, 1}


@pytest.mark.parametrize("neck", [n for n in NECKS if n != "bfp"])
def test_masks_go_with_all_of_it(neck):
    head = Head(relation=neck != "c4", roi="lrf", dedup="learned")
    system = detect(neck, head, masks=True).train()
    step = system(boxes.scenes(2, masks=True), boxes.CLOCK)
    assert {"loss_mask", "loss_duplicates"} <= step.logs.keys()
    system.eval().roi_heads.score_thresh = 0.0
    for found in system.predict(boxes.scenes(2)):
        assert found.masks.shape == (len(found.scores), 48, 64)


def test_the_bottom_up_pyramid_is_the_transformers_without_its_parts():
    """A level is laterals and a convolution of itself: no other level changes it."""
    bfp, fpt = detect("bfp").neck.eval(), detect("fpt").neck.eval()
    assert set(bfp.state_dict()) < set(fpt.state_dict())
    assert [k for k in bfp.state_dict() if k.startswith(("fpt.own", "fpt.ground"))] == []
    maps = [torch.randn(1, 8, 16 >> i, 16 >> i) for i in range(4)]
    whole = bfp.fpt(maps)
    alone = bfp.fpt([maps[0], *(torch.randn_like(y) for y in maps[1:])])
    assert torch.equal(whole[0], alone[0])
    assert bfp.fpt.out[0].in_channels == 8


def test_the_removal_ranks_as_many_as_the_paper():
    learned = Head(dedup="learned")
    assert detect(head=learned).removal.first == 150
    assert detect("c4", learned).removal.first == 100


def test_without_options_nothing_is_added():
    extra = ("removal", "relations", "learned", "fpt")
    assert [k for k in detect().state_dict() if any(e in k for e in extra)] == []


def test_true_boxes_are_not_seen_by_the_relations_of_proposals():
    system = detect(head=Head(relation=True)).train()
    keys = []
    system.roi_heads.box_head.register_forward_pre_hook(lambda m, args: keys.append(args))
    batch = boxes.scenes(2)
    system(batch, boxes.CLOCK)
    ((_, regions, seen),) = keys
    for mine, visible, true in zip(regions, seen, batch.boxes, strict=True):
        for box, shown in zip(mine, visible, strict=True):
            assert bool(shown) != bool((true == box).all(1).any())
        assert not visible.all()


def test_training_lowers_the_loss_of_related_regions_and_their_duplicates():
    system = detect(head=Head(relation=True, dedup="learned")).train()
    optimizer = torch.optim.Adam(system.parameters(), 2e-3)
    losses = []
    for step in range(6):
        torch.manual_seed(step)
        loss = system(boxes.scenes(2), boxes.CLOCK).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < sum(losses[:3])


def test_settings_are_reached_and_survive_json():
    cfg = config.override(
        Detect.Config(), "neck=fpt", "head.relation=true", "head.roi=lrf", "head.dedup=learned"
    )
    assert cfg.head == Head(relation=True, roi="lrf", dedup="learned")
    again = config.from_dict(Detect.Config, json.loads(json.dumps(config.to_dict(cfg))))
    assert again == cfg


def test_what_cannot_be_built_is_named():
    with pytest.raises(ValueError, match=r"head\.relation: the head of c4"):
        detect("c4", Head(relation=True))
    with pytest.raises(ValueError, match=r"system\.hidden: 24 does not divide"):
        detect(head=Head(relation=True), hidden=24)
    for settings in ({"neck": "fpt"}, {"head": Head(roi="lrf")}):
        with pytest.raises(ValueError, match=r"system\.width: 9 is odd and .*; make it even"):
            detect(**settings, width=9)
    with pytest.raises(ValueError, match=r"system\.neck=fpt needs a backbone in stages"):
        Detect(Detect.Config(neck="fpt", **SMALL), detect("simple").encoder)


@pytest.mark.slow
def test_a_detector_that_learned_two_pictures_keeps_one_box_of_each_square():
    """Without suppression: of the boxes on a square, the best has far the highest score."""
    head = Head(relation=True, dedup="learned")
    more = {"width": 16, "hidden": 32, "before_nms": (60, 60), "after_nms": (60, 60)}
    system = detect(head=head, batch_norm=False, regions=64, **more).train()
    norm.freeze(system.encoder)
    batch = boxes.scenes(2)
    optimizer = torch.optim.Adam([p for p in system.parameters() if p.requires_grad], 1e-3)
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=160)
    for step in range(160):
        torch.manual_seed(step)
        optimizer.zero_grad()
        system(batch, boxes.CLOCK).loss.backward()
        optimizer.step()
        slower.step()
    for found, want, labels in zip(
        system.eval().predict(batch), batch.boxes, batch.labels, strict=True
    ):
        for box, label in zip(want, labels, strict=True):
            mine = found.labels == label
            overlap = box_iou(box[None], found.boxes[mine])[0]
            assert overlap[0] > 0.5
            near = found.scores[mine][overlap > 0.5]
            assert near[0] > 0.3
            assert (near[1:] < 0.5 * near[0]).all()
