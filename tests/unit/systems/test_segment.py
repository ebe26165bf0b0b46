"""Heads of segmentation: sizes against closed forms, the loss against loops, what trains."""

import math

import masks
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18
from torchvision.models.segmentation.fcn import FCNHead

from saccade import backbones, systems
from saccade.core import IGNORED
from saccade.engine import optim
from saccade.recipe import BackboneConfig, Optim
from saccade.systems.segment import Segment

RESNET, VIT = "resnet10_w16", "vit_nano_patch8_64"
KINDS = [
    ("linear", RESNET, {}),
    ("linear", RESNET, {"last": 4, "frozen": True}),
    ("linear", VIT, {"last": 4}),
    ("fcn", RESNET, {"dilated": 1}),
    ("fcn", VIT, {}),
    ("uper", RESNET, {}),
    ("uper", VIT, {}),
    ("fpt", RESNET, {"dilated": 1}),
    ("fpt", VIT, {}),
    *(("fcn", RESNET, {"context": c}) for c in ("non_local", "disentangled", "global_context")),
    ("setr", VIT, {}),
]


def encoder(name=RESNET, **settings):
    stem = "paper" if name == RESNET else "auto"
    return backbones.create(BackboneConfig(name=name, image_size=64, **{"stem": stem, **settings}))


def segment(head="fcn", name=RESNET, seed=0, **settings):
    torch.manual_seed(seed)
    cfg = Segment.Config(classes=masks.CLASSES, head=head, **{"width": 16, **settings})
    return Segment(cfg, encoder(name))


def size(module):
    return sum(p.numel() for p in module.parameters())


def conv(channels, width, kernel):
    """Weights of a convolution without bias and of its batch norm."""
    return channels * width * kernel**2 + 2 * width


@pytest.mark.parametrize(("head", "name", "settings"), KINDS)
def test_every_pixel_of_any_size_gets_a_class(head, name, settings):
    system = segment(head, name, **settings).eval()
    batch = masks.segments(2, size=(37, 53))
    batch.stored[1] = (80, 110)
    seen = system.predict(batch)
    assert [tuple(x.shape) for x in seen] == [(37, 53), (80, 110)]
    assert all(x.dtype == torch.uint8 and int(x.max()) < 3 for x in seen)


@pytest.mark.parametrize(("head", "name", "settings"), KINDS)
def test_the_first_loss_is_that_of_chance_and_the_gradient_reaches_what_trains(
    head, name, settings
):
    system = segment(head, name, **settings).train()
    loss = system(masks.segments(3), masks.CLOCK).loss
    assert loss.item() == pytest.approx(math.log(3), rel=0.15)
    loss.backward()
    idle = {n for n, p in system.named_parameters() if p.grad is None}
    if settings.get("frozen"):
        assert idle == {n for n, _ in system.named_parameters() if n.startswith("encoder.")}
    else:
        norm = {"encoder.net.norm.weight", "encoder.net.norm.bias"}
        assert idle <= (norm if head in ("uper", "fpt") else set())


def test_the_loss_is_the_mean_over_pixels_with_a_class():
    system = segment("linear").eval()
    batch = masks.segments(2, size=(32, 32))
    batch.labels[0][5:20] = IGNORED
    y = system.head([system.encoder.features(batch.images)])  # [B, 3, 1, 1]
    p = y.detach().softmax(1)[:, :, 0, 0]  # the one cell counts for all pixels
    total, n = 0.0, 0
    for b, labels in enumerate(batch.labels):
        for label in labels.flatten().tolist():
            if label != IGNORED:
                total -= math.log(float(p[b, label]))
                n += 1
    assert n < 2 * 32 * 32
    assert system(batch, masks.CLOCK).loss.item() == pytest.approx(total / n, rel=1e-5)


def test_a_batch_without_any_class_has_no_loss():
    batch = masks.segments(2)
    for labels in batch.labels:
        labels.fill_(IGNORED)
    assert segment()(batch, masks.CLOCK).loss.item() == 0


def test_sizes_of_heads_equal_closed_forms():
    w, k = 16, 3
    widths, d = encoder().widths, encoder().dim
    assert size(segment("linear").head) == 2 * d + (d + 1) * k
    assert size(segment("linear", last=4).head) == 2 * sum(widths) + (sum(widths) + 1) * k
    want = conv(d, w, 3) + conv(w, w, 3) + (w + 1) * k
    assert size(segment("fcn").head) == want
    context = 4 * conv(d, w, 1) + conv(d + 4 * w, w, 3)
    lateral = sum(conv(c, w, 1) + conv(w, w, 3) for c in widths[:-1])
    want = context + lateral + conv(4 * w, w, 3) + (w + 1) * k
    assert size(segment("uper").head) == want
    block = 3 * (w + 1) * w // 2 + (w // 2 + 1) * w + 2 * w
    want = conv(d, w, 3) + block + conv(w, w, 3) + conv(d + w, w, 3) + (w + 1) * k
    assert size(segment("fcn", context="non_local").head) == want
    d = encoder(VIT).dim
    want = conv(d, w, 3) + 2 * conv(w, w, 3) + (w + 1) * k  # patches of 8: doubled three times
    assert size(segment("setr", VIT).head) == want
    assert size(segment("uper", VIT).taps) == 3 * (4 * d * d + d) + 2 * d


def test_setr_ends_at_the_size_of_the_picture():
    system = segment("setr", VIT).eval()
    assert system.head([torch.randn(1, 192, 4, 5)]).shape == (1, 3, 32, 40)


def test_the_head_of_non_local_networks_sees_all_of_the_map_and_its_input_again():
    """A change in one corner reaches the other by the block; without it, by no convolution."""
    x, reached = torch.randn(1, 128, 24, 24), {}
    other = x.clone()
    other[..., 0, 0] += 1
    for context in ("none", "disentangled"):
        head = segment("fcn", context=context, dilation=1).head.eval()
        with torch.no_grad():
            reached[context] = bool((head([x]) != head([other]))[..., -1, -1].any())
    assert reached == {"none": False, "disentangled": True}
    torch.nn.init.zeros_(head.layers[0].rest[-1][1].weight)
    with torch.no_grad():
        assert not torch.equal(head([x]), head([other]))  # what came in joins again


def test_levels_of_the_transformers_head_are_those_of_the_stages():
    for settings, strides in (({}, (4, 8, 16, 32)), ({"dilated": 1}, (4, 8, 16, 16))):
        system = segment("fpt", **settings)
        assert system.head.fpt.strides == strides
        assert system.head.fpt.ground["0_3"].square == 5


def test_fcn_equals_torchvisions_head():
    theirs = FCNHead(128, 3).eval()  # one 3x3 convolution of 32 channels, dropout, 1x1
    mine = segment("fcn", convs=1, width=32, dilation=1, dropout=0.1).eval()
    assert mine.encoder.dim == 128
    mine.head.load_state_dict(
        dict(zip(mine.head.state_dict(), theirs.state_dict().values(), strict=True))
    )
    x = torch.randn(2, 128, 5, 6)
    torch.testing.assert_close(mine.head([x]), theirs(x))


def test_dilated_stages_see_what_strided_ones_see_at_every_place():
    plain, dilated = encoder("resnet18").eval(), encoder("resnet18").eval()
    dilated.load_state_dict(plain.state_dict())
    dilated.dilate(2)
    assert dilated.strides == (1, 2, 2, 2)
    theirs = resnet18().eval()
    x = torch.randn(1, 64, 12, 16)
    for i, (layer, rate) in enumerate(((theirs.layer3, 2), (theirs.layer4, 4))):
        for m in layer.modules():
            if isinstance(m, nn.Conv2d):
                m.stride = (1, 1)
                if m.kernel_size == (3, 3):
                    m.dilation = m.padding = (rate, rate)
        mine = dilated.net.layer3 if i == 0 else dilated.net.layer4
        layer.load_state_dict(mine.state_dict())
        x = torch.randn(1, 128 << i, 12, 16)
        torch.testing.assert_close(dilated.stage(x, 2 + i), layer(x))
        assert dilated.stage(x, 2 + i).shape == (1, 256 << i, 12, 16)
    y = torch.randn(1, 256, 12, 12)
    whole = F.conv2d(y, dilated.net.layer4[0].conv1.weight, padding=4, dilation=4)
    torch.testing.assert_close(dilated.net.layer4[0].conv1(y), whole)


def test_a_frozen_encoder_keeps_weights_and_statistics():
    system = segment("linear", frozen=True).train()
    before = {k: v.clone() for k, v in system.state_dict().items()}
    optimizer = optim.build(system, Optim(lr=0.1, lr_rule="none"))
    for _ in range(2):
        optimizer.zero_grad()
        system(masks.segments(2), masks.CLOCK).loss.backward()
        optimizer.step()
    moved = {k for k, v in system.state_dict().items() if not torch.equal(v, before[k])}
    assert moved
    assert all(name.startswith("head.") for name in moved)
    batch = masks.segments(2)
    a, b = (system.taps(system.encoder, batch.images)[0] for _ in range(2))
    assert torch.equal(a, b)
    assert not a.requires_grad


def test_the_head_may_learn_faster():
    groups = list(segment(head_lr=10.0).groups())
    assert [g.lr_scale for g in groups] == [1.0, 10.0]
    assert all(n.startswith("encoder.") for n, _ in groups[0].params)


@pytest.mark.parametrize(
    ("head", "name", "settings"),
    [("fcn", RESNET, {"dilated": 2, "dilation": 1}), ("uper", RESNET, {}), ("setr", VIT, {})],
)
def test_training_lowers_the_loss_on_two_pictures(head, name, settings):
    system = segment(head, name, **settings).train()
    batch = masks.segments(2)
    optimizer = torch.optim.Adam(system.parameters(), 1e-2)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = system(batch, masks.CLOCK).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


WRONG = {
    "no classes": ({"classes": ()}, RESNET, "system.classes is empty"),
    "setr": ({"head": "setr"}, RESNET, "setr needs a plain ViT"),
    "dilated vit": ({"dilated": 1}, VIT, "dilated=1 needs a backbone in stages.*set it to 0"),
    "too many dilated": ({"dilated": 4}, RESNET, "up to 3 stages"),
    "too many stages": ({"last": 5}, RESNET, "choose 1 to 4 stages"),
    "too many blocks": ({"last": 9}, VIT, "choose 1 to 6 blocks"),
    "ignored": ({"head": "uper", "last": 2}, RESNET, "leave it at 1"),
    "no fcn": ({"head": "uper", "context": "non_local"}, RESNET, "set system.head=fcn"),
    "no convolution": ({"context": "non_local", "convs": 0}, RESNET, "system.convs to 1 or more"),
    "odd": ({"head": "fpt", "width": 9}, RESNET, "system.width: attention splits 9 in two"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_setting_that_cannot_be_is_named(what):
    settings, name, words = WRONG[what]
    with pytest.raises(ValueError, match=words):
        Segment(Segment.Config(**{"classes": masks.CLASSES, **settings}), encoder(name))


def test_networks_that_pool_do_not_dilate():
    with pytest.raises(ValueError, match="choose one, such as resnet50"):
        encoder("lr_net14_w32").dilate(1)


def test_recipes_fit_their_backbones_and_say_where_they_come_from():
    for recipe in systems.recipes("segment").values():
        assert recipe.source
        assert recipe.steps or recipe.epochs
        heads = {"setr": "vit", "linear": ""}
        assert heads.get(recipe.system.head, "resnet") in recipe.backbone.name
