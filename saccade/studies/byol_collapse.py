"""BYOL with a teacher that follows slowly, never, or at once."""

from . import GENTLE, RESNET, SGD, Arm, Study

STUDY = Study(
    claim="BYOL works without negatives; a teacher that never moves or moves at once fails",
    source="arXiv:2006.07733, table 5a (figures from memory)",
    figure="ImageNet linear accuracy of ResNet-50, 300 epochs",
    arms=(
        Arm(name="BYOL", method="byol", published=0.725, sets=("method.momentum=0.9",)),
        Arm(
            name="teacher never moves", method="byol", published=0.188, sets=("method.momentum=1",)
        ),
        Arm(
            name="teacher is the student",
            method="byol",
            published=0.003,
            sets=("method.momentum=0",),
        ),
    ),
    order=(("BYOL", "teacher never moves"), ("BYOL", "teacher is the student")),
    common=(
        *(*RESNET, *SGD, GENTLE),
        *("method.hidden=512", "method.dim=128"),
    ),
)
