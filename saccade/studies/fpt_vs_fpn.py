"""A feature pyramid transformer beside the bottom-up pyramid of its paper's table, and FPN."""

from . import TINY_SCENES, Arm, Study


def _arm(name: str, neck: str, published: float | None = None) -> Arm:
    return Arm(name=name, system="detect", published=published, batch_size=8, system_sets=(neck,))


STUDY = Study(
    claim="a feature pyramid transformer lifts a detector over its pyramid",
    source="arXiv:2007.09451: 31.6 to 38.0 over a bottom-up pyramid (from memory); none over FPN",
    figure="COCO AP, Mask R-CNN R50",
    arms=(
        _arm("FPT", "system.neck=fpt", published=0.380),
        _arm("bottom-up", "system.neck=bfp", published=0.316),
        _arm("FPN", "system.neck=fpn"),
    ),
    order=(("FPT", "bottom-up"), ("FPT", "FPN")),
    system_common=TINY_SCENES,  # all cells of the transformer attend to all
    measure="system",
    protocol="coco-box",
    metric="AP50",
    seen=3_200,
)
