"""An ONNX graph with a free batch size: `images` to `vector`, and `tokens` of plain ViTs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..core import Backbone, PixelBackbone
from ..recipe import BackboneConfig, Normalize
from ..weights import write_beside
from .outputs import Reader, norms_tokens, outputs

TOLERANCE = 1e-4
EXAMPLES = 2  # torch.export takes a batch of one for a constant


class Outputs(nn.Module):
    """The compared outputs as a tuple."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(outputs(self.backbone, images).values())


def write(backbone: Backbone, cfg: BackboneConfig, normalize: Normalize, out: Path) -> None:
    try:
        import onnxscript  # noqa: F401  (what torch.onnx works with)
    except ImportError:
        raise ValueError("setting format: onnx needs pip install 'saccade[onnx]'") from None
    if isinstance(backbone, PixelBackbone):
        raise ValueError(
            f"setting format: onnx does not hold {cfg.name}'s search for the nearest color; "
            "use format state-dict or hf"
        )
    names = ["vector", "tokens"] if norms_tokens(backbone) else ["vector"]
    example = torch.zeros(EXAMPLES, cfg.channels, cfg.image_size, cfg.image_size)
    program = torch.onnx.export(
        Outputs(backbone).eval(),
        (example,),
        input_names=["images"],
        output_names=names,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
        dynamo=True,
    )
    assert program is not None  # only the older exporter returns none
    write_beside(out, lambda beside: program.save(str(beside), external_data=False))


def read_back(out: Path) -> Reader:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def read(images: Tensor) -> dict[str, Tensor]:
        arrays = session.run(names, {"images": images.numpy()})
        return {name: torch.from_numpy(a) for name, a in zip(names, arrays, strict=True)}

    return read
