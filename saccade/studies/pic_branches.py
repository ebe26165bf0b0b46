"""One branch that names instances, beside two that compare views."""

from . import GENTLE, RESNET, SGD, Arm, Study

STUDY = Study(
    claim="PIC, a single-branch classifier of instances, matches two-branch methods",
    source="arXiv:2006.14618, figures of its README; PIC there with multi-crop",
    figure="ImageNet linear accuracy of ResNet-50, 200 epochs",
    arms=(
        Arm(name="PIC", method="pic", published=0.686),
        Arm(
            name="MoCo v2",
            method="moco",
            published=0.679,
            sets=(
                "method.queue_size=1024",
                "method.momentum=0.9",
                "method.splits=1",
                "method.hidden=512",
            ),
        ),
        Arm(name="SimCLR", method="simclr", published=0.666, sets=("method.hidden=512",)),
    ),
    order=(),
    common=(*RESNET, *SGD, GENTLE, "method.temperature=0.2"),
)
