import torch
import torch.nn.functional as F

from saccade.nn.patches import normalize_patches, patchify, unpatchify


def test_patches_hold_rows_then_columns_then_channels():
    x = torch.randn(2, 3, 4, 6)
    patches = patchify(x, 2)
    assert patches.shape == (2, 6, 12)
    for n in range(6):
        top, left = 2 * (n // 3), 2 * (n % 3)
        want = [x[0, c, top + i, left + j] for i in range(2) for j in range(2) for c in range(3)]
        assert torch.equal(patches[0, n], torch.stack(want))


def test_folding_the_patches_gives_the_picture_back():
    x = torch.randn(2, 3, 8, 12)
    columns = patchify(x, 4).unflatten(2, (16, 3)).mT.flatten(2).mT  # channel first, as fold wants
    assert torch.equal(F.fold(columns, (8, 12), 4, stride=4), x)
    assert torch.equal(unpatchify(patchify(x, 4), 4, (2, 3)), x)


def test_normalized_constant_patch_is_zero_and_others_have_unit_unbiased_variance():
    x = torch.randn(1, 2, 12)
    x[0, 0] = 7
    y = normalize_patches(x)
    assert torch.equal(y[0, 0], torch.zeros(12))
    assert abs(y[0, 1].var(correction=1).item() - 1) < 1e-4
