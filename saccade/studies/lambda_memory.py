"""How memory grows with resolution: all pairs of positions, or a lambda for each."""

from . import Arm, Study


def _arm(name: str, mechanism: str, published: float) -> Arm:
    return Arm(name=name, mechanism=mechanism, published=published)


STUDY = Study(
    claim="a lambda layer's memory grows with the positions, attention's with their square",
    source="arXiv:2102.08602, table 2: b h n^2, and k n m for any batch; a window is a constant m",
    figure="exponents in the number of positions n",
    arms=(
        _arm("self-attention", "self-attention", 2.0),
        _arm("global lambda", "lambda global", 2.0),
        _arm("lambda convolution", "lambda 23x23", 1.0),
    ),
    order=(
        ("self-attention", "lambda convolution"),
        ("global lambda", "lambda convolution"),
    ),
    measure="growth",
    metric="memory",
)
