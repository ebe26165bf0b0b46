import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import CLOCK, batch_for, build, noise

from saccade.core import Views


def patches_of(x, p=8):
    """Patches [B, N, rows, columns, C] cut one by one."""
    rows, columns = x.shape[2] // p, x.shape[3] // p
    cut = [
        x[:, :, i * p : i * p + p, j * p : j * p + p].permute(0, 2, 3, 1)
        for i in range(rows)
        for j in range(columns)
    ]
    return torch.stack(cut, 1)


@pytest.mark.parametrize("target", ["pixels", "l1", "normalized", "codes"])
def test_loss_is_the_mean_over_chosen_patches_written_as_loops(target):
    task, batch = build("mlm", target=target, mask_ratio=0.5), batch_for("mlm", b=2)
    x = batch.images[0]
    mask = task.choose(batch.key, (4, 4))
    y = task.encode(x, mask, batch.key)
    total = []
    for b, n in mask.nonzero().tolist():
        guess, patch = task.head(y[b, n]).detach(), patches_of(x)[b, n]
        if target == "codes":
            r, g, b_ = (min(max(int(v * 8), 0), 7) for v in patch.mean((0, 1)).tolist())
            total.append(-float(guess.log_softmax(0)[64 * r + 8 * g + b_]))
            continue
        patch = patch.flatten()
        if target == "normalized":
            patch = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
        error = guess - patch
        total.append(float((error.abs() if target == "l1" else error**2).mean()))
    assert task(batch, CLOCK).loss.item() == pytest.approx(sum(total) / len(total), rel=1e-4)


@pytest.mark.parametrize(
    ("other", "settings"), [("beit", {"target": "codes"}), ("simmim", {"target": "l1"})]
)
def test_given_the_same_mask_codes_are_beits_task_and_l1_is_simmims(other, settings):
    task, theirs, batch = build("mlm", **settings), build(other), batch_for("mlm", b=3)
    task.encoder.load_state_dict(theirs.encoder.state_dict())
    mask = theirs.choose(batch.key)  # cells of one patch
    task.choose = lambda key, grid: mask.flatten(1)
    task.mask_token.data = theirs.mask_token.data.view_as(task.mask_token)
    last = theirs.head if other == "beit" else theirs.pixels
    for mine, its in zip(task.head.parameters(), last.parameters(), strict=True):
        its = its if other == "beit" else its.unflatten(0, (3, 64)).transpose(0, 1)
        mine.data = its.reshape(mine.shape)  # pixels of a patch: row, column, channel
    want = theirs(batch, CLOCK).loss.item()
    assert task(batch, CLOCK).loss.item() == pytest.approx(want, rel=1e-5)


def test_first_loss_of_codes_is_the_log_of_their_number():
    task = build("mlm", target="codes")
    nn.init.zeros_(task.head.weight)
    nn.init.zeros_(task.head.bias)
    assert task(batch_for("mlm"), CLOCK).loss.item() == pytest.approx(math.log(512), rel=1e-6)


def test_colors_are_those_of_the_picture_before_it_was_normalized():
    task, batch = build("mlm", target="codes", mask_ratio=1.0), batch_for("mlm", b=2)
    plain = batch.images[0].sigmoid()
    x = (plain - 0.4) / 0.3
    batch = Views(images=[x], index=batch.index, key=batch.key, mean=(0.4,), std=(0.3,))
    level = (patches_of(plain).mean((2, 3)) * 8).long()  # [B, N, 3]
    code = (level * torch.tensor([64, 8, 1])).sum(-1)
    guess = F.one_hot(code, 512) * 100.0
    assert task.losses(guess, batch).max() < 1e-6


def test_every_patch_is_chosen_with_the_stated_chance():
    task, batch = build("mlm"), noise(b=3000, sizes=(1,))
    mask = task.choose(batch.key, (4, 4))
    share = mask.float().mean(0)
    assert (share - 0.15).abs().max() < 5 * (0.15 * 0.85 / 3000) ** 0.5
    assert mask.sum(1).unique().numel() > 3  # a chance, not a count


def test_blocks_hide_no_more_than_the_ratio():
    task, batch = build("mlm", masking="blocks", mask_ratio=0.4), noise(b=300, sizes=(1,))
    count = task.choose(batch.key, (4, 4)).sum(1)
    assert count.max() == 6
    assert count.float().mean() > 5


def test_chosen_patches_are_masked_swapped_or_left_in_the_stated_shares():
    settings = {"mask_ratio": 0.5, "swapped": 0.2, "unchanged": 0.3}
    task, batch = build("mlm", **settings), noise(b=400, sizes=(32,))
    x, rows = batch.images[0], []
    task.encoder.blocks.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0]))
    mask = task.choose(batch.key, (4, 4))
    with torch.no_grad():
        task.encode(x, mask, batch.key)
        bare = rows[0][:, 1:] - task.encoder.table
        own = task.encoder.embed(x).flatten(2).mT
    masked = (bare - task.mask_token).abs().amax(-1) < 1e-4
    same = (bare - own).abs().amax(-1) < 1e-4
    other = (bare[:, :, None] - own[:, None]).abs().amax(-1) < 1e-4  # [B, N, N] of the picture
    assert same[~mask].all()
    assert (masked | same | other.any(-1)).all()
    assert masked[mask].float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert same[mask].float().mean().item() == pytest.approx(0.3 + 0.2 / 16, abs=0.03)


def test_encoder_sees_no_masked_pixel():
    task, batch = build("mlm", mask_ratio=0.5).eval(), batch_for("mlm", b=2)
    x = batch.images[0]
    mask = task.choose(batch.key, (4, 4))
    hidden = mask.unflatten(1, (4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    seen = task.encode(x, mask, batch.key)
    assert torch.equal(task.encode(x + 100 * hidden, mask, batch.key), seen)
    assert not torch.equal(task.encode(x + ~hidden, mask, batch.key), seen)


def test_a_batch_without_chosen_patches_costs_nothing():
    task = build("mlm", mask_ratio=1e-6)
    assert task(batch_for("mlm", b=1), CLOCK).loss.item() == 0


@pytest.mark.parametrize("target", ["pixels", "normalized"])
def test_drawn_are_the_guesses_where_patches_are_chosen(target):
    task, batch = build("mlm", target=target, mask_ratio=0.5).eval(), batch_for("mlm", b=1)
    x = batch.images[0]
    mask = task.choose(batch.key, (4, 4))
    drawn = task.draw(batch)
    for n in range(16):
        at = (0, slice(None), *(slice(8 * k, 8 * k + 8) for k in divmod(n, 4)))
        if not mask[0, n]:
            assert torch.equal(drawn["both"][at], x[at])
            continue
        want = task.head(task.encode(x, mask, batch.key))[0, n].unflatten(0, (8, 8, 3))
        want = want.permute(2, 0, 1)
        if target == "normalized":
            want = want * (x[at].var() + 1e-6).sqrt() + x[at].mean()
        torch.testing.assert_close(drawn["predicted"][at], want, atol=1e-5, rtol=1e-4)


def test_drawn_codes_are_colors():
    drawn = build("mlm", target="codes").eval().draw(batch_for("mlm", b=2))
    assert drawn["predicted"].shape == (2, 3, 32, 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_ratio": 0.0}, "method.mask_ratio: 0.0"),
        ({"swapped": 0.6, "unchanged": 0.5}, "method.swapped: 0.6 and method.unchanged=0.5"),
        ({"target": "codes", "tokenizer": "dale"}, "method.tokenizer: 'dale' is not there"),
        ({"tokenizer": "runs/codes"}, "method.tokenizer: runs/codes is not read .*target=pixels"),
    ],
)
def test_what_leaves_nothing_to_predict_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build("mlm", **settings)
