"""BYOL with a teacher that follows slowly, never, or at once, and without its predictor."""

from . import GENTLE, RESNET, SGD, Arm, Study

STUDY = Study(
    claim="BYOL works without negatives; take its teacher or its predictor, and it fails",
    source="arXiv:2006.07733, tables 5a and 5b (figures from memory)",
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
        Arm(
            name="no predictor",
            method="byol",
            published=0.002,
            sets=("method.predict=false", "method.momentum=0.9"),
        ),
    ),
    order=(
        ("BYOL", "teacher never moves"),
        ("BYOL", "teacher is the student"),
        ("BYOL", "no predictor"),
    ),
    common=(
        *(*RESNET, *SGD, GENTLE),
        *("method.hidden=512", "method.dim=128"),
    ),
)
