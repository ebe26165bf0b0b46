"""Pretraining. The file name is the name users type; `saccade.methods` is the entry-point group."""

from __future__ import annotations

from ..registry import Registry

_files = Registry("method", __name__, __path__)
names, recipes, recipe_names = _files.names, _files.recipes, _files.recipe_names
summary, path, citation = _files.summary, _files.path, _files.citation

# What kind of idea each is, and what it needs beyond pictures. A view is one augmented picture; a
# plain ViT is a `PatchBackbone`; the index says which picture of the data it is.
FACTS: dict[str, tuple[str, str]] = {
    "barlow_twins": ("decorrelation", "2 views"),
    "beit": ("masks", "1 view, plain ViT, tokenizer"),
    "byol": ("teacher", "2 views"),
    "cae": ("masks", "1 view, plain ViT, tokenizer"),
    "clsa": ("contrast", "3 views"),
    "data2vec": ("masks", "1 view, plain ViT"),
    "dino": ("teacher", "10 views"),
    "dinov2": ("teacher", "10 views, plain ViT"),
    "end_to_end": ("contrast", "2 views"),
    "exemplar_cnn": ("instances", "1 view, index"),
    "ibot": ("teacher", "12 views, plain ViT"),
    "igpt": ("generative", "1 view, network of pixels"),
    "ijepa": ("masks", "1 view, plain ViT"),
    "infomin": ("contrast", "3 views"),
    "mae": ("masks", "1 view, plain ViT"),
    "memory_bank": ("instances", "1 view, index"),
    "mlm": ("masks", "1 view, plain ViT"),
    "moby": ("contrast", "2 views"),
    "moco": ("contrast", "2 views"),
    "moco_bank": ("contrast", "1 view, index"),
    "moco_v3": ("contrast", "2 views"),
    "mst": ("teacher", "10 views, ViT or Swin"),
    "nnclr": ("contrast", "2 views"),
    "pic": ("instances", "1 view, index"),
    "pixcontrast": ("pixels", "2 views"),
    "pixpro": ("pixels", "2 views"),
    "simclr": ("contrast", "2 views"),
    "simclr_v2": ("contrast", "2 views"),
    "simmim": ("masks", "1 view"),
    "simsiam": ("teacher", "2 views"),
    "supcon": ("contrast", "2 views, labels"),
    "swav": ("clusters", "8 views"),
    "tokenizer": ("generative", "1 view, plain ViT"),
    "vicreg": ("decorrelation", "2 views"),
}


def get(name: str) -> type:
    """The one Method class defined in methods/<name>.py."""
    from ..core import Method

    return _files.get(name, Method)
