"""At what depth Image GPT knows most, by both of its objectives."""

from . import Arm, Study

NETWORK, DEPTH = "igpt_pico_16", 6  # its _bert form sees all pixels, and is asked for hidden ones


def _arms(network: str, name: str, published: dict[str, float | None]) -> tuple[Arm, ...]:
    """The layer that held-out pictures choose, and the last one, of one network."""
    metrics = {"best layer": "top1", "last layer": f"top1@{DEPTH}"}
    return tuple(
        Arm(
            name=f"{name}, {layer}",
            method="igpt",
            published=published[layer],
            backbone=network,
            batch_size=32,
            metric=metric,
            shared=f"{name}, best layer" if layer == "last layer" else "",
        )
        for layer, metric in metrics.items()
    )


STUDY = Study(
    claim="the best features lie in the middle, and both objectives work",
    source="Chen et al. 2020, iGPT-L at 32 pixels on CIFAR-10; BERT's figures are bounds",
    figure="CIFAR-10 linear accuracy",
    arms=(
        *_arms(NETWORK, "autoregressive", {"best layer": 0.963, "last layer": 0.939}),
        *_arms(f"{NETWORK}_bert", "BERT", {"best layer": 0.953, "last layer": None}),
    ),
    order=(
        ("autoregressive, best layer", "autoregressive, last layer"),
        ("BERT, best layer", "BERT, last layer"),
        ("autoregressive, best layer", "BERT, best layer"),
    ),
    recipe="cpu",
    common=("engine.log_every=100",),
    protocol="linear-igpt",
    seen=50_000,
)
