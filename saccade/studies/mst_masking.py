"""What MST may hide from its student."""

from . import Arm, Study

DINO = (
    *("method.hidden=512", "method.bottleneck=64", "method.prototypes=512"),
    *("method.momentum=0.97", "method.freeze_last_layer=0"),
)
GLOBAL = ("method.views.0.crop=[0.2,1.0]", "method.views.1.crop=[0.2,1.0]")


def _arm(name: str, masking: str, published: float | None, share: float = 0.3) -> Arm:
    sets = (f"method.masking={masking}", f"method.masked_share={share}", "method.num=2")
    return Arm(
        name=name,
        method="mst",
        published=published,
        backbone="vit_pico_patch4_32",
        batch_size=64,
        sets=sets,
    )


STUDY = Study(
    claim="random masking hurts DINO, hiding what the teacher does not attend to helps",
    source="arXiv:2106.05656, table 4; here half of the 64 patches are candidates",
    figure="ImageNet linear accuracy of DeiT-S",
    arms=(
        _arm("no masking", "none", 0.731),
        _arm("random", "random", 0.632),
        _arm("low attention", "low", 0.737),
        _arm("high attention", "high", None),
    ),
    order=(("low attention", "no masking"), ("no masking", "random"), ("low attention", "random")),
    common=(
        *(*DINO, *GLOBAL, "method.restore_weight=0", "optim.name=adamw", "optim.lr=0.001"),
        *("optim.lr_rule=none", "optim.schedule.warmup_epochs=1", "engine.log_every=50"),
    ),
    protocol="logistic",
)
