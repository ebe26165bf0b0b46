"""BERT's task alone, DINO, and MST, which puts the one into the other."""

from . import Arm, Study
from .mst_masking import DINO, GLOBAL

VIT = "vit_pico_patch4_32"
ADAM = ("optim.name=adamw", "optim.lr=0.001", "optim.lr_rule=none")


def _mst(name: str, published: float, *sets: str) -> Arm:
    return Arm(
        name=name,
        method="mst",
        published=published,
        backbone=VIT,
        batch_size=64,
        sets=(*DINO, *GLOBAL, *sets),
    )


STUDY = Study(
    claim="a pure masked language model is far below DINO, and MST above it",
    source="arXiv:2106.05656, table 6, 100 epochs; here half of the 64 patches are candidates",
    figure="ImageNet linear accuracy of DeiT-S",
    arms=(
        Arm(name="pure MLM", method="mlm", published=0.4, backbone=VIT, batch_size=64),
        _mst("DINO", 0.716, "method.masking=none", "method.restore_weight=0"),
        _mst("MST", 0.739, "method.masking=low", "method.masked_share=0.3", "method.num=2"),
    ),
    order=(("MST", "DINO"), ("DINO", "pure MLM"), ("MST", "pure MLM")),
    common=(*ADAM, "optim.schedule.warmup_epochs=1", "engine.log_every=50"),
    protocol="logistic",
)
