"""Relations between regions, and a learned removal of duplicates in the place of NMS."""

from . import TINY_SCENES, Arm, Study

RELATION, LEARNED = "system.head.relation=true", "system.head.dedup=learned"


def _arm(name: str, published: float, *sets: str) -> Arm:
    return Arm(name=name, system="detect", published=published, batch_size=8, system_sets=sets)


STUDY = Study(
    claim="a relation module can learn duplicate removal and replace NMS",
    source="arXiv:1711.11575, Faster R-CNN R101; NMS at .5, but soft-NMS beside relations alone",
    figure="COCO AP",
    arms=(
        _arm("relation and learned", 0.352, RELATION, LEARNED),
        _arm("relation", 0.347, RELATION),
        _arm("learned", 0.326, LEARNED),
        _arm("NMS", 0.318),
    ),
    order=(
        ("relation and learned", "NMS"),
        ("relation", "NMS"),
        ("learned", "NMS"),
        ("relation and learned", "relation"),
    ),
    system_common=(*TINY_SCENES, "system.regions=128"),
    measure="system",
    protocol="coco-box",
    metric="AP50",
    seen=3_200,
)
