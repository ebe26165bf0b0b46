"""Pretraining of pixels, of pictures, and none, carried to naming pixels."""

from . import Arm, Study

CROP = 160  # pixels of PixPro's views: its maps are 5 x 5


def _arm(name: str, method: str, published: float, *sets: str) -> Arm:
    return Arm(
        name=name,
        method=method,
        system="segment",
        published=published,
        batch_size=32,
        sets=(f"backbone.image_size={CROP}", f"method.views.0.size={CROP}", *sets),
    )


STUDY = Study(
    claim="pretraining pixels lifts dense transfer more than pretraining pictures",
    source="arXiv:2011.10043, Cityscapes (scratch and MoCo v2 from memory); here CamVid",
    figure="Cityscapes mIoU of ResNet-50",
    arms=(
        _arm("PixPro", "pixpro", 0.772, f"method.views.1.size={CROP}"),
        _arm("MoCo v2", "moco", 0.762, "method.queue_size=1024"),
        Arm(name="scratch", system="segment", published=0.653, batch_size=16),
    ),
    order=(("PixPro", "MoCo v2"), ("PixPro", "scratch"), ("MoCo v2", "scratch")),
    common=("backbone.stem=paper", "engine.log_every=50"),
    system_common=("system.cropping.short=180", "engine.log_every=50"),
    measure="system",
    protocol="segmentation",
    metric="mIoU",
    seen=8_640,
    system_seen=4_800,
)
