import math

import pytest
import torch

from saccade.nn.degeneration import cosine_distance, divergence, mean_entropy, unary_share


def test_equal_rows_are_at_no_distance():
    rows = torch.rand(1, 1, 7).softmax(-1).expand(2, 5, 7)
    assert cosine_distance(rows).abs().max() < 1e-6
    assert divergence(rows).abs().max() < 1e-6
    torch.testing.assert_close(unary_share(rows.log()), torch.ones(2))


@pytest.mark.parametrize("n", [2, 5])
def test_rows_that_see_themselves_alone_are_at_the_largest_distance(n):
    rows = torch.eye(n)[None]
    assert cosine_distance(rows).item() == pytest.approx((n - 1) / (2 * n))
    assert divergence(rows).item() == pytest.approx(math.log(2) * (n - 1) / n)
    assert mean_entropy(rows).item() == pytest.approx(1)
    assert unary_share(rows).item() == pytest.approx(0, abs=1e-12)


def test_both_distances_equal_the_definitions_written_as_loops():
    rows = torch.randn(1, 4, 6).mul(2).softmax(-1)
    cosine = jsd = 0.0
    for a in rows[0]:
        for b in rows[0]:
            cosine += (1 - float(a @ b / a.norm() / b.norm())) / 2
            for p, q in zip(a.tolist(), b.tolist(), strict=True):
                jsd += (p * math.log(2 * p / (p + q)) + q * math.log(2 * q / (p + q))) / 2
    assert cosine_distance(rows).item() == pytest.approx(cosine / 16, rel=1e-5)
    assert divergence(rows).item() == pytest.approx(jsd / 16, rel=1e-5)


def test_one_key_for_all_queries_is_a_mean_row_without_entropy():
    assert mean_entropy(torch.eye(4)[:1].expand(1, 3, 4)).item() == 0


def test_the_unary_share_is_that_of_the_variances():
    common, own = torch.tensor([1.0, -1, 1, -1]), torch.tensor([3.0, 3, -3, -3])
    logits = torch.stack([common + own, common - own])[None]  # variances over keys: 1 and 9
    assert unary_share(logits).item() == pytest.approx(1 / 10)
