"""The relation of objects against its equations."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead

from saccade.attention import ObjectRelation, RelationHead
from saccade.attention.object_relation import embedded, relative

C, HEADS, WIDTH = 8, 2, 3


def make(geometry="official", *, std=0.3, **settings):
    torch.manual_seed(0)
    made = ObjectRelation(C, **{"heads": HEADS, "width": WIDTH, **settings}, geometry=geometry)
    for p in made.parameters():
        nn.init.normal_(p, std=std)
    return made.double()


def objects(n=5, side=100.0, seed=1):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, C, generator=g, dtype=torch.double)
    corner, size = torch.rand(2, n, 2, generator=g, dtype=torch.double) * side
    return x, torch.cat([corner, corner + size + 1], 1)


def all_of(boxes):
    return torch.ones(boxes.shape[:-1], dtype=torch.bool)


def place(asking, seen, geometry):
    """E of two boxes, number by number."""
    plus = 1 if geometry == "official" else 0
    (w, h), (v, u) = (((b[2] - b[0] + plus), (b[3] - b[1] + plus)) for b in (asking, seen))
    away = [abs((asking[i] + asking[i + 2]) - (seen[i] + seen[i + 2])) / 2 for i in (0, 1)]
    sides = (w, h) if geometry == "official" else (v, u)
    four = [math.log(max(a / s, 1e-3)) for a, s in zip(away, sides, strict=True)]
    four += [math.log(w / v), math.log(h / u)]
    found = []
    for e in four:
        angles = [100 * e / 1000 ** (i / 8) for i in range(8)]
        found += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    return found


@torch.no_grad()
@pytest.mark.parametrize("geometry", ["official", "paper"])
def test_it_equals_the_equations_written_as_loops(geometry):
    made = make(geometry)
    x, boxes = objects()
    q, k, v = made.query(x), made.key(x), made.value(x)
    want = x.clone()
    for n in range(5):
        for r in range(HEADS):
            part, out = slice(r * WIDTH, (r + 1) * WIDTH), slice(r * C // 2, (r + 1) * C // 2)
            terms = []
            for m in range(5):
                e = place(boxes[n].tolist(), boxes[m].tolist(), geometry)
                e = torch.tensor(e, dtype=torch.double)
                g = max(0.0, float(e @ made.place.weight[r] + made.place.bias[r]))
                terms.append(max(g, 1e-6) * math.exp(float(q[n, part] @ k[m, part]) / 3**0.5))
            for m in range(5):
                want[n, out] += terms[m] / sum(terms) * v[m, out]
    torch.testing.assert_close(made(x, boxes, all_of(boxes)), want)


def test_values_projected_after_the_sum_give_the_same():
    """The official order: raw features are summed, then a grouped convolution."""
    made = make()
    x, boxes = objects()
    w = made.attention(x, boxes, all_of(boxes))
    summed = (w @ x).transpose(0, 1).reshape(5, HEADS * C, 1, 1)
    y = F.conv2d(summed, made.value.weight[..., None, None], made.value.bias, groups=HEADS)
    torch.testing.assert_close(made(x, boxes, all_of(boxes)), x + y[..., 0, 0])


def test_geometry_in_closed_form():
    boxes = torch.tensor([[0.0, 0, 9, 19], [20, 0, 39, 9], [0, 0, 9, 19]])
    four = relative(boxes)
    log = math.log
    want = [log(25 / 10), log(5 / 20), log(1 / 2), log(2)]  # the first box asks, 10 by 20 pixels
    assert four[0, 1].tolist() == pytest.approx(want)
    assert four[1, 0].tolist() == pytest.approx([log(25 / 20), log(5 / 10), log(2), log(1 / 2)])
    assert four[0, 2].tolist() == pytest.approx([log(1e-3), log(1e-3), 0, 0])
    plain = relative(boxes, "paper")[0, 1].tolist()
    assert plain == pytest.approx([log(25 / 19), log(5 / 9), log(9 / 19), log(19 / 9)])


def test_an_embedding_has_eight_sines_and_eight_cosines_of_each_number():
    e = embedded(torch.tensor([0.0, 0.01, -0.02, 1.0])).view(4, 2, 8)
    assert torch.equal(e[0], torch.tensor([[0.0], [1.0]]).expand(2, 8))
    assert e[1, 0, 0] == pytest.approx(math.sin(1))
    assert e[1, 1, 0] == pytest.approx(math.cos(1))
    assert e[3, 0, 4] == pytest.approx(math.sin(100 / 1000**0.5), abs=1e-5)
    torch.testing.assert_close(e[2, 0], -(2 * e[1, 0] * e[1, 1]))


def test_objects_in_another_order_give_outputs_in_that_order():
    made = make()
    x, boxes = objects()
    order = torch.randperm(5)
    y = made(x[order], boxes[order], all_of(boxes))
    torch.testing.assert_close(y, made(x, boxes, all_of(boxes))[order])


@pytest.mark.parametrize(("geometry", "tolerance"), [("paper", 1e-9), ("official", 1e-2)])
def test_moving_or_scaling_all_boxes_changes_no_weight(geometry, tolerance):
    made = make(geometry, std=0.05)
    x, boxes = objects(side=1e4 if geometry == "official" else 100.0)
    w = made.attention(x, boxes, all_of(boxes))
    for other in (boxes + 17.5, boxes * 3):
        moved = made.attention(x, other, all_of(boxes))
        torch.testing.assert_close(moved, w, atol=tolerance, rtol=0)


def by_torch(made, x, log_g):
    """torch's attention with the same weights, the geometry as its mask."""
    y, _ = F.multi_head_attention_forward(
        *(x[:, None],) * 3,
        embed_dim_to_check=C,
        num_heads=HEADS,
        in_proj_weight=torch.cat([m.weight for m in (made.query, made.key, made.value)]),
        in_proj_bias=torch.cat([m.bias for m in (made.query, made.key, made.value)]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=torch.eye(C).double(),
        out_proj_bias=torch.zeros(C).double(),
        attn_mask=log_g,
        need_weights=False,
    )
    return x + y[:, 0]


def test_it_is_torchs_attention_with_the_geometry_as_its_mask():
    made = make(width=C // HEADS)
    x, boxes = objects()
    want = by_torch(made, x, made.places(boxes))
    torch.testing.assert_close(made(x, boxes, all_of(boxes)), want)


@pytest.mark.parametrize("bias", [-1e3, 1e3])
def test_where_no_place_or_every_place_is_far_off_zero_it_is_plain_attention(bias):
    made = make(width=C // HEADS)
    nn.init.constant_(made.place.bias, bias)
    nn.init.zeros_(made.place.weight)
    x, boxes = objects()
    want = by_torch(made, x, None)
    torch.testing.assert_close(made(x, boxes, all_of(boxes)), want)


def test_a_place_of_no_weight_keeps_a_millionth_in_half_precision_too():
    made = make().float()
    nn.init.constant_(made.place.bias, -1e3)
    x, boxes = (t.float() for t in objects())
    exact = made.attention(x, boxes, all_of(boxes))
    with torch.autocast("cpu", torch.float16):
        w = made.attention(x, boxes, all_of(boxes))
    assert w.dtype == torch.float32
    torch.testing.assert_close(w, exact, atol=2e-3, rtol=0)
    nn.init.constant_(made.place.bias[:1], 1.0)  # of the other head alone
    torch.testing.assert_close(made.attention(x, boxes, all_of(boxes))[1], exact[1])


def test_an_object_alone_sees_itself():
    made = make()
    x, boxes = objects(1)
    torch.testing.assert_close(made(x, boxes, all_of(boxes)), x + made.value(x))


def test_boxes_that_only_ask_change_nothing_for_the_others():
    made = make()
    x, boxes = objects(7)
    keys = torch.arange(7) < 5
    y = made(x, boxes, keys)
    torch.testing.assert_close(y[:5], made(x[:5], boxes[:5], all_of(boxes[:5])))
    assert torch.all(made.attention(x, boxes, keys)[..., 5:] == 0)


def test_padded_sets_in_a_batch_equal_one_set_after_the_other():
    made = make()
    sets = [objects(n, seed=n) for n in (3, 5)]
    keys = torch.arange(5) < torch.tensor([[3], [5]])
    x, boxes = (nn.utils.rnn.pad_sequence(ts, batch_first=True) for ts in zip(*sets, strict=True))
    y = made(x, boxes, keys)
    for row, (one, mine) in zip(y, sets, strict=True):
        torch.testing.assert_close(row[: len(one)], made(one, mine, all_of(mine)))


def test_nobody_to_see_adds_nothing():
    made = make()
    x, boxes = objects()
    assert torch.equal(made(x, boxes, ~all_of(boxes)), x)


def test_boxes_without_area_give_numbers():
    made = make("paper")
    x, _ = objects(3)
    assert made(x, torch.zeros(3, 4).double(), torch.ones(3, dtype=torch.bool)).isfinite().all()


def test_a_head_whose_relations_have_no_values_is_its_twin_without():
    torch.manual_seed(0)
    head, twin = RelationHead(nn.Flatten(), (C, 32, 32)), TwoMLPHead(C, 32)
    for relation in head.relations:
        nn.init.zeros_(relation.value.weight)
    for layer, theirs in zip(head.layers, (twin.fc6, twin.fc7), strict=True):
        theirs.load_state_dict(layer.state_dict())
    x, boxes = (t.float() for t in objects(6))
    parts = [boxes[:2], boxes[2:]]
    assert torch.equal(head(x, parts, [all_of(b) for b in parts]), twin(x))


def test_a_head_relates_the_regions_of_a_picture_before_the_relu():
    torch.manual_seed(0)
    head = RelationHead(nn.Identity(), (C, 16))
    nn.init.normal_(head.relations[0].value.weight)
    x, boxes = (t.float() for t in objects(6))
    parts = [boxes[:2], boxes[2:]]
    y = head(x, parts, [all_of(b) for b in parts])
    for rows in (slice(0, 2), slice(2, 6)):
        alone = head.relations[0](head.layers[0](x[rows]), boxes[rows], all_of(boxes[rows]))
        torch.testing.assert_close(y[rows], alone.clamp(min=0))


def test_boxes_get_no_gradient():
    x, boxes = objects()
    boxes.requires_grad_()
    make()(x, boxes, all_of(boxes)).sum().backward()
    assert boxes.grad is None


def test_gradients_are_those_of_differences():
    made = make()
    x, boxes = objects(3)
    weights = [made.place.bias, made.value.bias, made.key.bias, made.query.bias]

    def run(x, *_):
        return made(x, boxes, torch.tensor([True, True, False]))

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *weights))


def test_heads_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match="heads=16 does not divide 24 channels"):
        ObjectRelation(24)
