"""CAE with and without its alignment in the encoder's space, at the paper's weight and at less."""

from . import Arm, Study


def _arm(name: str, published: float | None, weight: float) -> Arm:
    return Arm(
        name=name,
        method="cae",
        published=published,
        backbone="vit_pico_patch4_32",
        sets=(f"method.alignment={weight}",),
    )


STUDY = Study(
    claim="aligning predictions with the encoder's own features makes better features",
    source="arXiv:2202.03026, ablation of ViT-B, 300 epochs (from memory)",
    figure="ImageNet accuracy of an attentive probe",
    arms=(
        _arm("decoder and alignment", 0.738, 2.0),
        _arm("decoder and little alignment", None, 0.1),
        _arm("decoder alone", 0.727, 0.0),
    ),
    order=(("decoder and alignment", "decoder alone"),),
    common=(
        *("method.decoder_dim=96", "method.regressor_depth=1"),
        *("optim.lr=0.002", "optim.schedule.warmup_epochs=1", "engine.log_every=50"),
    ),
    protocol="attentive-cae",
)
