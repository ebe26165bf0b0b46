"""Which layer of a network a parameter belongs to, by timm's names of blocks."""

from __future__ import annotations

import re
from collections.abc import Iterable

# A block of a ViT; of a ResNet; of ConvNeXt or Swin, or what stands before or behind its blocks.
UNIT = re.compile(r"blocks\.\d+|layer\d\.\d+|(stages|layers)\.\d+\.(blocks\.\d+|downsample)")


def numbered(names: Iterable[str]) -> dict[str, int]:
    """Layer by parameter, both in the network's order: 0 before the first block, then block by
    block, and one more behind the last."""
    names = list(names)
    found = {name: UNIT.search(name) for name in names}
    units = list(dict.fromkeys(m[0] for m in found.values() if m))
    number = {unit: i + 1 for i, unit in enumerate(units)}
    layers: dict[str, int] = {}
    last = 0
    for name in names:
        match = found[name]
        last = number[match[0]] if match else last and len(units) + 1
        layers[name] = last
    return layers
