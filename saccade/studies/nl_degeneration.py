"""Whether a non-local block looks at the same places whatever pixel asks."""

from . import SUPERVISED, Arm, Study


def _arm(name: str, backbone: str, part: str) -> Arm:
    return Arm(name=name, system="classify", backbone=backbone, batch_size=64, metric=part)


STUDY = Study(
    claim="non-local attention becomes one map for all queries; DNL's pairwise term does not",
    source="arXiv:1904.11492 and arXiv:2006.06668, which show it and give no such figure",
    figure="none",
    arms=(
        _arm("non-local", "nl_resnet10_w32", "attention"),
        _arm("DNL, pairwise", "dnl_resnet10_w32", "pairwise"),
    ),
    order=(("non-local", "DNL, pairwise"),),
    system_common=SUPERVISED,
    measure="degeneracy",
    seen=45_000,
)
