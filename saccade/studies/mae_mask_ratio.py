"""How much of a picture MAE should hide."""

from . import Arm, Study


def _arm(ratio: float, published: float) -> Arm:
    return Arm(
        name=f"{ratio:.0%} hidden",
        method="mae",
        published=published,
        backbone="vit_pico_patch4_32",
        sets=(f"method.mask_ratio={ratio}",),
    )


STUDY = Study(
    claim="hiding about three quarters is best, and linear probing is sensitive to it",
    source="arXiv:2111.06377, figure 5; ViT-L, 800 epochs (most points of the figure from memory)",
    figure="ImageNet linear accuracy",
    arms=(_arm(0.2, 0.589), _arm(0.5, 0.699), _arm(0.75, 0.735), _arm(0.9, 0.661)),
    order=(
        ("75% hidden", "20% hidden"),
        ("75% hidden", "50% hidden"),
        ("75% hidden", "90% hidden"),
    ),
    common=(
        *("method.decoder_dim=64", "method.decoder_depth=2", "method.decoder_heads=2"),
        *("optim.lr=0.003", "optim.lr_rule=none", "optim.schedule.warmup_epochs=1"),
        "engine.log_every=50",
    ),
    protocol="logistic",
)
