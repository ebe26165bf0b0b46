"""A feature pyramid transformer in the place of a feature pyramid network."""

from . import Arm, Study

TINY = (  # all cells of the transformer attend to all
    *("system.framing.short=[112,120,128,136,144]", "system.framing.test_short=128"),
    *("system.framing.longest=216", "system.anchors=[10,20,40,80,160]"),
)

STUDY = Study(
    claim="a feature pyramid transformer lifts a detector over its pyramid",
    source="arXiv:2007.09451: 31.6 to 38.0 over a bottom-up pyramid (from memory); none over FPN",
    figure="none over FPN",
    arms=(
        Arm(
            name="FPT",
            system="detect",
            batch_size=8,
            system_sets=("system.neck=fpt",),
        ),
        Arm(name="FPN", system="detect", batch_size=8),
    ),
    order=(("FPT", "FPN"),),
    system_common=(*TINY, "backbone.stem=paper", "engine.log_every=50"),
    measure="system",
    protocol="coco-box",
    metric="AP50",
    seen=3_200,
)
