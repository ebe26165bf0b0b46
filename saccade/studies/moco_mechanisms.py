"""MoCo's three mechanisms against the size of the dictionary."""

from . import ADAM, GENTLE, RESNET, Arm, Study

HEAD = ("method.hidden=512", "method.temperature=0.1")
KEYS = "method.momentum=0.9"  # of few steps: .999 would hardly have moved


def _end_to_end(k: int, published: float | None) -> Arm:
    """The dictionary is the batch."""
    return Arm(name=f"end-to-end, K {k}", method="end_to_end", published=published, batch_size=k)


def _queue(k: int, published: float | None) -> Arm:
    sets = (f"method.queue_size={k}", KEYS)
    return Arm(name=f"MoCo, K {k}", method="moco", published=published, sets=sets)


def _bank(k: int, published: float | None) -> Arm:
    sets = (f"method.negatives={k}",)
    return Arm(name=f"memory bank, K {k}", method="moco_bank", published=published, sets=sets)


STUDY = Study(
    claim="three contrastive mechanisms rise with the dictionary's size; the bank stays below",
    source="arXiv:1911.05722, figure 3; our K is a quarter of the paper's 256, 1024, 4096",
    figure="ImageNet linear accuracy of ResNet-50",
    arms=(
        *(_end_to_end(64, 0.547), _end_to_end(256, 0.573)),
        *(_queue(128, 0.564), _queue(256, 0.575), _queue(1024, 0.59)),
        *(_bank(128, 0.52), _bank(256, 0.541), _bank(1024, 0.565)),
    ),
    order=(
        ("MoCo, K 1024", "MoCo, K 128"),
        ("memory bank, K 1024", "memory bank, K 128"),
        ("end-to-end, K 256", "end-to-end, K 64"),
        ("MoCo, K 1024", "memory bank, K 1024"),
        ("MoCo, K 256", "memory bank, K 256"),
    ),
    seen=80_000,
    pictures=4000,  # each is seen twenty times: a bank needs that
    common=(*RESNET, *ADAM, GENTLE, *HEAD, "method.splits=1"),
)
