"""How slowly MoCo's key encoder should follow."""

from . import ADAM, GENTLE, RESNET, Arm, Study


def _arm(momentum: float, published: float | None) -> Arm:
    sets = (f"method.momentum={momentum}",)
    return Arm(name=f"momentum {momentum:g}", method="moco", published=published, sets=sets)


STUDY = Study(
    claim="a slow key encoder is much better than a fast one, and none fails",
    source="arXiv:1911.05722, section 4.1; few steps here favor faster keys than the paper's .999",
    figure="ImageNet linear accuracy of ResNet-50, K 4096",
    arms=(_arm(0.0, 0.0), _arm(0.9, 0.552), _arm(0.99, 0.578), _arm(0.999, 0.59)),
    order=(
        ("momentum 0.9", "momentum 0"),
        ("momentum 0.99", "momentum 0.9"),
        ("momentum 0.999", "momentum 0.9"),
    ),
    seen=80_000,
    pictures=4000,
    common=(
        *(*RESNET, *ADAM, GENTLE, "method.hidden=512", "method.temperature=0.1"),
        *("method.queue_size=1024", "method.splits=1"),
    ),
)
