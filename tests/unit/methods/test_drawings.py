"""Pictures that methods draw of what they see."""

import pytest
import torch
import torch.nn.functional as F
from toys import batch_for, build

from saccade import methods
from saccade.core import Method

DRAWING = [n for n in methods.names() if methods.get(n).draw is not Method.draw]


@torch.no_grad()
def draw(name, **settings):
    task, batch = build(name, **settings).eval(), batch_for(name, b=3)
    return task, batch, task.draw(batch)


@pytest.mark.parametrize("name", ["mae", "mst", "pixpro"])
def test_drawings_have_the_shape_of_the_first_view(name):
    _, batch, made = draw(name)
    assert name in DRAWING
    assert len(made) >= 2
    assert all(x.shape == batch.images[0].shape for x in made.values())


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_mae_keeps_visible_pixels_exactly(norm_pix_loss):
    _, batch, made = draw("mae", norm_pix_loss=norm_pix_loss)
    x, seen, both = batch.images[0], made["seen"], made["both"]
    visible = ~seen.isnan()
    assert visible.float().mean().item() == pytest.approx(0.25)
    assert torch.equal(both[visible], x[visible])
    assert not both.isnan().any()
    assert not torch.equal(both[~visible], x[~visible])


def test_mst_hides_the_patches_of_its_mask_and_restores_the_whole():
    task, batch, made = draw("mst", num=2, masked_share=1.0)
    net, x = task.teacher.module, batch.images[0]
    with torch.no_grad():
        _, rows = net.encode_and_look(net.tokens(x))
    for b, row in enumerate(rows[:, :, 1:].mean(1)):
        lowest = set(row.argsort()[:8].tolist())  # half of 4 x 4 patches
        for patch in range(16):
            y, z = 8 * (patch // 4), 8 * (patch % 4)
            part = made["seen"][b, :, y : y + 8, z : z + 8]
            if patch in lowest:
                assert part.isnan().all()
            else:
                assert torch.equal(part, x[b, :, y : y + 8, z : z + 8])
    assert made["restored"].isfinite().all()


def test_pixpro_fades_each_cell_by_its_likeness_to_the_middle_one():
    task, batch, made = draw("pixpro", gamma=2.0)
    x, other = batch.images
    with torch.no_grad():
        h = task.projector(task.encoder.features(x))
        k = task.teacher_projector(task.teacher.module.features(other))
        maps = (h, task.transform(h), k)
    z, g, k = (F.normalize(m.flatten(2).mT, dim=-1) for m in maps)  # [B, 64, D]
    middle = 4 * 8 + 4  # of 8 x 8 cells of 4 pixels
    for b in range(3):
        weights = [max(float(z[b, middle] @ z[b, j]), 0) ** 2 for j in range(64)]
        y = F.normalize(torch.tensor(weights) @ g[b], dim=0)
        for j in (0, 9, middle, 63):
            top, left = 4 * (j // 8), 4 * (j % 8)
            at = (b, slice(None), slice(top, top + 4), slice(left, left + 4))
            agreed = max(float(y @ k[b, j]), 0)
            torch.testing.assert_close(made["smoothed by"][at], x[at] * weights[j])
            torch.testing.assert_close(made["agrees with"][at], other[at] * agreed)
    alone = ~made["middle cell"].isnan()
    assert alone[:, 0].sum().item() == 3 * 16
    assert torch.equal(made["middle cell"][alone], x[alone])
