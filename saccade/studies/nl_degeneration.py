"""Whether a non-local block looks at the same places whatever pixel asks.

Both networks have their blocks in the same units. Cosines of rows are high for rows near uniform
too, so what all queries have in common is also measured as a share of the logits' spread, which no
temperature changes; and rows stand beside what goes into the block, as in GCNet's table. The figure
of the same network before training says what it has become.
"""

from . import SUPERVISED, Arm, Study


def _arm(name: str, backbone: str, figure: str, shared: str = "") -> Arm:
    return Arm(
        name=name,
        system="classify",
        backbone=backbone,
        batch_size=64,
        metric=figure,
        shared=shared,
    )


NL, DNL = "non-local", "DNL, pairwise"

STUDY = Study(
    claim="non-local attention becomes one map for all queries; DNL's pairwise term does not",
    source="arXiv:1904.11492 and arXiv:2006.06668, which show it and give no such figure",
    figure="none",
    arms=(
        _arm(NL, "nl_resnet10_w32", "attention"),
        _arm("non-local, input", "nl_resnet10_w32", "attention before", NL),
        _arm("non-local, found", "nl_resnet10_w32", "attention found", NL),
        _arm("non-local, common share", "nl_resnet10_w32", "attention unary_share", NL),
        _arm(DNL, "dnl_resnet10_w32", "pairwise"),
        _arm("DNL, common share", "dnl_resnet10_w32", "pairwise unary_share", DNL),
    ),
    order=(
        (NL, "non-local, input"),
        ("non-local, found", "non-local, input"),
        (NL, DNL),
        ("non-local, common share", "DNL, common share"),
    ),
    system_common=SUPERVISED,
    measure="degeneracy",
    seen=45_000,
)
