"""Local relations in the place of convolutions, at equal operations."""

from . import SUPERVISED, Arm, Study

SIZE = 16  # pixels


def _arm(name: str, backbone: str, published: float) -> Arm:
    sets = (f"backbone.image_size={SIZE}",)
    return Arm(
        name=name,
        system="classify",
        published=published,
        backbone=backbone,
        batch_size=64,
        system_sets=sets,
    )


STUDY = Study(
    claim="replacing convolution by local relation is more accurate at equal operations",
    source="arXiv:1904.11491: LR-Net-26, 2.6 G; ResNet-26 of the same table from memory",
    figure="ImageNet accuracy",
    arms=(_arm("LR-Net", "lr_net14_w16", 0.757), _arm("ResNet", "resnet14_w13", 0.728)),
    order=(("LR-Net", "ResNet"),),
    system_common=SUPERVISED,
    measure="system",
    protocol="classify",
    seen=45_000,
)
