"""Learned region features against the general form of pooling."""

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import roi_align

from saccade.attention import LearnedRegionFeatures
from saccade.attention.learned_region_features import gathered, sines, spread

C, SIZE, STRIDE = 6, 2, 4
DENSE = {"inside": 0, "outside": 16}  # every cell of these maps


def make(std=0.4, **settings):
    torch.manual_seed(0)
    made = LearnedRegionFeatures(C, SIZE, embedding=4, width=5, **settings)
    for p in (made.box, made.position, made.appearance):
        torch.nn.init.normal_(p, std=std)
    return made.double()


def maps(seed=1, size=(5, 7)):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, C, *size, generator=g, dtype=torch.double)


REGIONS = torch.tensor([[0, 2.0, 3, 20, 15], [1, 8, 1, 27, 19], [0, 0, 0, 28, 20]]).double()
WHOLE = torch.tensor([[20, 28], [20, 28]])


def middles(size=(5, 7)):
    """x and y of all cells, in raster order."""
    rows, columns = torch.meshgrid(*(torch.arange(s).double() for s in size), indexing="ij")
    return torch.stack([columns.flatten(), rows.flatten()], 1) * STRIDE + STRIDE / 2


def test_coordinates_are_sines_and_cosines_of_pixels_with_a_base_of_a_thousand():
    found = sines(torch.tensor([[3.0, 700.0]]).double(), 6)[0].tolist()
    want = []
    for z in (3.0, 700.0):
        angles = [z / 1000 ** (2 * i / 6) for i in range(3)]
        want += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    assert found == pytest.approx(want)


def dense_logits(made, x, regions):
    """G + A of all cells, region by region and bin by bin."""
    at = middles(x.shape[2:])
    known = torch.cat([sines(at[:, :1], 4), sines(at[:, 1:], 4)], 1)  # [HW, 2 E]: x, then y
    w = torch.cat([made.position[1], made.position[0]], 1)  # columns, then rows
    out = []
    for region in regions:
        looks = x[int(region[0])].flatten(1).T @ made.appearance.T  # [HW, K]
        e = sines(region[None, 1:], 4)[0]
        bins = [(known @ w.T) @ (made.box[k] @ e) + looks[:, k] for k in range(SIZE * SIZE)]
        out.append(torch.stack(bins))
    return torch.stack(out)  # [R, K, HW]


def test_over_all_cells_it_equals_the_equation():
    made, x = make(**DENSE), maps()
    w = dense_logits(made, x, REGIONS).softmax(-1)
    want = torch.stack([a @ x[int(r[0])].flatten(1).T for a, r in zip(w, REGIONS, strict=True)])
    torch.testing.assert_close(made(x, REGIONS, STRIDE, WHOLE).flatten(2).mT, want)


def test_it_is_torchs_attention_with_the_appearance_as_its_mask():
    made, x = make(**DENSE), maps()
    at = middles()
    k = (
        torch.cat([sines(at[:, :1], 4), sines(at[:, 1:], 4)], 1)
        @ torch.cat([made.position[1], made.position[0]], 1).mT
    )
    for region, y in zip(REGIONS, made(x, REGIONS, STRIDE, WHOLE), strict=True):
        q = made.box @ sines(region[None, 1:], 4)[0]  # [K, G]
        v = x[int(region[0])].flatten(1).T
        want = F.scaled_dot_product_attention(
            q, k, v, attn_mask=(v @ made.appearance.T).T, scale=1.0
        )
        torch.testing.assert_close(y.flatten(1).T, want)


def test_sampled_cells_have_the_weights_of_the_equation_among_themselves():
    made, x = make(inside=3, outside=2), maps()
    logits = dense_logits(made, x, REGIONS)
    w, cells = made.attention(x, REGIONS, STRIDE, WHOLE)
    for r in range(len(REGIONS)):
        used = sorted(set(cells[r].tolist()))
        want = torch.zeros(SIZE * SIZE, 35).double()
        want[:, used] = logits[r][:, used].softmax(-1)
        mine = torch.zeros_like(want).index_add(1, cells[r], w[r])
        torch.testing.assert_close(mine, want)


def test_cells_are_spread_over_the_box_and_the_picture():
    made, x = make(inside=2, outside=2), maps(size=(8, 8))
    region = torch.tensor([[0, 8.0, 0, 24, 8]]).double()  # columns 2 to 5, rows 0 and 1
    w, cells = made.attention(x, region, STRIDE, torch.tensor([[32, 32]] * 2))
    places = [divmod(c, 8) for c in cells[0].tolist()]
    assert places[:4] == [(0, 3), (0, 5), (1, 3), (1, 5)]
    assert places[4:] == [(2, 2), (2, 6), (6, 2), (6, 6)]
    assert (w > 0).all()
    assert spread(torch.tensor([2]), torch.tensor([3]), 6).tolist() == [[2, 2, 3, 3, 4, 4]]


def test_a_cell_drawn_twice_counts_once():
    """A box of one cell, drawn in both grids again and again."""
    made, x = make(inside=5, outside=9), maps()
    w, cells = made.attention(x, REGIONS, STRIDE, WHOLE)
    for mine, used in zip(w, cells, strict=True):
        counted = used[mine[0] > 0].tolist()
        assert len(counted) == len(set(counted)) == len(set(used.tolist()))


def test_weights_of_each_bin_sum_to_one_and_a_constant_map_stays():
    made = make()
    w, _ = made.attention(maps(), REGIONS, STRIDE, WHOLE)
    torch.testing.assert_close(w.sum(-1), torch.ones(3, 4).double())
    x = maps()[:, :, :1, :1].expand(-1, -1, 5, 7)
    y = made(x, REGIONS, STRIDE, WHOLE)
    want = x[REGIONS[:, 0].long(), :, :SIZE, :SIZE]
    torch.testing.assert_close(y, want)


def test_without_appearance_weights_do_not_know_the_picture():
    made = make()
    torch.nn.init.zeros_(made.appearance)
    one, other = (made.attention(maps(s), REGIONS, STRIDE, WHOLE)[0] for s in (1, 2))
    assert torch.equal(one, other)


def test_without_geometry_weights_do_not_know_the_box():
    made, x = make(**DENSE), maps()
    torch.nn.init.zeros_(made.box)
    y = made(x, REGIONS, STRIDE, WHOLE)
    torch.testing.assert_close(y[0], y[2])


def test_the_general_form_with_bilinear_weights_is_roi_align():
    x, size = maps(size=(12, 10)), 3
    regions = torch.tensor([[0, 6.0, 7, 31, 40], [1, 5, 9, 33, 21]]).double()
    at = middles((12, 10))
    weights = []
    for region in regions:
        corner, side = region[1:3], (region[3:] - region[1:3]) / size
        for row in range(size):
            for column in range(size):
                middle = corner + (torch.tensor([column, row]) + 0.5) * side
                near = (1 - (at - middle).abs() / STRIDE).clamp(min=0).prod(1)
                weights.append(near)
    w = torch.stack(weights).view(2, size * size, 120)
    cells = torch.arange(120).expand(2, -1)
    y = gathered(x, regions[:, 0].long(), cells, w).mT.unflatten(2, (size, size))
    want = roi_align(x, regions, size, 1 / STRIDE, sampling_ratio=1, aligned=True)
    torch.testing.assert_close(y, want, atol=1e-5, rtol=1e-5)


def test_samples_in_another_order_change_nothing_and_twice_the_same_would():
    x, picture = maps(), REGIONS[:, 0].long()
    cells, w = torch.arange(35).expand(3, -1), torch.rand(3, 4, 35).double()
    order = torch.randperm(35)
    y = gathered(x, picture, cells, w)
    torch.testing.assert_close(gathered(x, picture, cells[:, order], w[..., order]), y)
    twice = gathered(x, picture, torch.cat([cells, cells[:, :1]], 1), F.pad(w, (0, 1), value=1.0))
    assert not torch.allclose(twice, y)


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize(
    "box", [(5, 5, 5, 5), (9, 3, 9, 19), (-50, -50, -40, -40), (300, 300, 320, 330), (20, 9, 5, 3)]
)
def test_boxes_without_cells_take_the_nearest_one(box, prior):
    made, x = make(inside=3, outside=0, prior=prior), maps()
    region = torch.tensor([[1, *map(float, box)]]).double()
    w, cells = made.attention(x, region, STRIDE, WHOLE)
    torch.testing.assert_close(w.sum(-1), torch.ones(1, 4).double())
    middle = torch.tensor([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]) - STRIDE / 2
    near = (middle / STRIDE).round().clamp(torch.zeros(2), torch.tensor([6.0, 4.0]))
    column = cells[0][w[0, 0] > 0] % 7
    assert near[0] in column
    assert made(x, region, STRIDE, WHOLE).isfinite().all()


def test_padding_of_a_batch_is_not_seen():
    made, x = make(), maps()
    small = torch.tensor([[20, 28], [13, 17]])  # the second picture has 4 by 5 cells
    region = torch.tensor([[1, 2.0, 1, 17, 13]]).double()
    y = made(x, region, STRIDE, small)
    region[:, 0] = 0
    torch.testing.assert_close(made(x[1:, :, :4, :5], region, STRIDE, small[1:]), y)


def test_bins_start_near_the_mean_of_the_positions():
    torch.manual_seed(0)
    made = LearnedRegionFeatures(C, SIZE, embedding=4, width=5, **DENSE).double()
    x = maps()
    y = made(x, REGIONS[:1], STRIDE, WHOLE)
    want = x[0].mean((1, 2))[:, None, None].expand(-1, SIZE, SIZE)
    torch.testing.assert_close(y[0], want, atol=0.05, rtol=0)


def test_with_the_prior_bins_start_in_the_order_of_the_grid():
    torch.manual_seed(0)
    made = LearnedRegionFeatures(C, 3, embedding=4, width=5, prior=True).double()
    x = maps(size=(16, 16))
    w, cells = made.attention(x, REGIONS[:1] * 2.5, STRIDE, torch.tensor([[64, 64]] * 2))
    at = middles((16, 16))[cells[0]]  # [N, 2]
    mean = (w[0] @ at).view(3, 3, 2)
    box = REGIONS[0, 1:] * 2.5
    sides = (box[2:] - box[:2]) / 3
    assert (mean[..., 0].diff(dim=1) > sides[0] / 2).all()
    assert (mean[..., 1].diff(dim=0) > sides[1] / 2).all()
    torch.testing.assert_close(mean[1, 1], (box[:2] + box[2:]) / 2, atol=2.0, rtol=0)


def test_the_prior_equals_its_words():
    made, x = make(prior=True, **DENSE), maps()
    torch.nn.init.uniform_(made.pull)
    at, logits = middles(), dense_logits(made, x, REGIONS)
    for r, region in enumerate(REGIONS):
        step = (region[3:] - region[1:3]) / SIZE
        for k in range(SIZE * SIZE):
            middle = region[1:3] + (torch.tensor([k % SIZE, k // SIZE]) + 0.5) * step
            away = (at - middle) / step.clamp(min=STRIDE)
            logits[r, k] -= made.pull[k] * away.square().sum(1) / 2
    w, cells = made.attention(x, REGIONS, STRIDE, WHOLE)
    for mine, used, want in zip(w, cells, logits.softmax(-1), strict=True):
        torch.testing.assert_close(torch.zeros_like(want).index_add(1, used, mine), want)


def test_box_and_picture_that_move_together_keep_the_prior_and_not_what_was_learned():
    made, x = make(prior=True, inside=3, outside=0), maps(size=(8, 8))
    region, sizes = torch.tensor([[0, 5.0, 6, 17, 14]]).double(), torch.tensor([[32, 32]] * 2)
    step = torch.tensor([0, STRIDE, STRIDE, STRIDE, STRIDE])
    moved = made(x.roll((1, 1), (2, 3)), region + step, STRIDE, sizes)
    assert (moved - made(x, region, STRIDE, sizes)).abs().max() > 1e-3
    torch.nn.init.zeros_(made.box)
    moved = made(x.roll((1, 1), (2, 3)), region + step, STRIDE, sizes)
    torch.testing.assert_close(moved, made(x, region, STRIDE, sizes))


def test_the_weights_of_300_regions_are_17_megabytes():
    regions = REGIONS[:1].float().expand(300, -1)
    made = LearnedRegionFeatures(C, embedding=4, width=5)
    w, _ = made.attention(maps().float(), regions, STRIDE, WHOLE)
    assert w.nbytes == 300 * 49 * (14**2 + 10**2) * 4


def test_half_precision_keeps_its_weights():
    made, x = make().float(), maps().float()
    w, _ = made.attention(x, REGIONS.float(), STRIDE, WHOLE)
    with torch.autocast("cpu", torch.float16):
        other, _ = made.attention(x, REGIONS.float(), STRIDE, WHOLE)
    assert torch.equal(w, other)


def test_no_region_gives_no_features_and_boxes_get_no_gradient():
    made, x = make(), maps()
    assert made(x, REGIONS[:0], STRIDE, WHOLE).shape == (0, C, SIZE, SIZE)
    regions = REGIONS.clone().requires_grad_()
    made(x, regions, STRIDE, WHOLE).sum().backward()
    assert regions.grad is None


def test_no_positions_are_refused():
    with pytest.raises(ValueError, match="inside=0 and outside=0"):
        make(inside=0, outside=0)


@pytest.mark.parametrize("prior", [False, True])
def test_gradients_are_those_of_differences(prior):
    torch.manual_seed(0)
    made = LearnedRegionFeatures(2, 1, embedding=2, width=2, inside=2, outside=2, prior=prior)
    x = torch.randn(1, 2, 2, 3, dtype=torch.double, requires_grad=True)
    regions = torch.tensor([[0, 2.0, 0, 9, 8]]).double()

    def run(x, *_):
        return made(x, regions, STRIDE, torch.tensor([[8, 12]]))

    assert torch.autograd.gradcheck(run, (x, *made.double().parameters()))


def test_odd_embeddings_are_refused():
    with pytest.raises(ValueError, match="embedding=3 is of sines and cosines"):
        LearnedRegionFeatures(C, SIZE, embedding=3)
