import torch
import torch.nn.functional as F
from lightly.utils.benchmarking import knn_predict

from saccade.evals.knn import neighbors, vote


def test_knn_lightly_answers_as_lightly():
    torch.manual_seed(0)
    bank, query = torch.randn(300, 16), torch.randn(50, 16)
    y = torch.randint(0, 7, (300,))
    theirs = knn_predict(F.normalize(query, dim=1), F.normalize(bank, dim=1).T, y, 7, 200, 0.1)
    scores = vote(neighbors(query, bank, 200), y, 7, 200, 0.1)
    assert torch.equal(scores.argsort(dim=1, descending=True), theirs)
