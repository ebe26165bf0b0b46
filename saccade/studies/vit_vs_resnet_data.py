"""A transformer and a convolutional network of as many operations, with few labels and with more.

Each has the optimizer that it is trained with elsewhere; the pictures seen are as many.
"""

from . import SUPERVISED, Arm, Study

FEW, MANY = 1_000, 20_000
SIZE = 24  # pixels
ADAM = ("optim.name=adamw", "optim.lr=0.001", "optim.weight_decay=0.05")


def _arms(labels: int) -> tuple[Arm, Arm]:
    words = f"{labels:,} labels"
    return (
        Arm(
            name=f"ResNet, {words}",
            system="classify",
            backbone="resnet10_w28",
            batch_size=64,
            pictures=labels,
        ),
        Arm(
            name=f"ViT, {words}",
            system="classify",
            backbone="vit_pico_patch4_32",
            batch_size=64,
            pictures=labels,
            system_sets=(*ADAM, "backbone.stem=auto"),
        ),
    )


STUDY = Study(
    claim="ViT falls behind ResNet on little data and overtakes it with more",
    source="arXiv:2010.11929, figures 3 and 4: behind on ImageNet, ahead on JFT-300M",
    figure="none at these sizes: the paper's crossing lies at millions of pictures",
    arms=(*_arms(FEW), *_arms(MANY)),
    order=(
        (f"ResNet, {FEW:,} labels", f"ViT, {FEW:,} labels"),
        (f"ViT, {MANY:,} labels", f"ResNet, {MANY:,} labels"),
    ),
    system_common=(*SUPERVISED, f"backbone.image_size={SIZE}"),
    measure="system",
    protocol="classify",
    seen=45_000,
)
