"""Frozen features: taken once, in eval mode, by the protocol's own preprocessing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..core import Backbone, PatchBackbone, PixelBackbone
from ..data.bad import Bad
from ..data.plain import pictures
from ..data.source import BadPicture, Source
from ..recipe import Normalize

SMALL = 64  # pixels: pictures up to here are not enlarged before the crop
VERSION = 1  # of the extraction: part of every cache key

# The pooled vector; the CLS tokens of the last 4 blocks, or of all where there are fewer; these and
# the last mean token; means over the places of all layers of a transformer over colors.
Kind = Literal["pooled", "cls-4", "cls-4-mean", "layers"]
Progress = Callable[[int, int], None]  # pictures done, pictures in all


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Short side to `resize`, center crop of `size`, normalize."""

    size: int
    resize: int
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    normalize: Normalize


@dataclass(frozen=True, slots=True)
class Features:
    """One row a readable picture; rows are not scaled to unit length."""

    x: Float[Tensor, "n d"]
    y: Int[Tensor, "n"]  # -1 without labels
    index: Int[Tensor, "n"]  # position in the source


def preprocess_for(model: Backbone, normalize: Normalize) -> Preprocess:
    """DINO's and MoCo's 256 / 224 at the backbone's size; tiny pictures are taken whole."""
    size = model.image_size
    resize = size if size <= SMALL else round(size * 256 / 224)
    return Preprocess(size=size, resize=resize, normalize=normalize)


def quiet(done: int, total: int) -> None:
    """Progress that nobody watches."""


def extract(
    model: Backbone,
    source: Source,
    preprocess: Preprocess,
    *,
    kind: Kind = "pooled",
    batch_size: int = 256,
    threads: int = 2,
    progress: Progress = quiet,
) -> Features:
    """Features of every readable picture, in order, on the model's device."""
    rows, at, bad = [], [], []
    with evaluating(model):
        for x, index in batches(model, source, preprocess, batch_size, threads, bad):
            rows.append(_take(model, x, kind).float())
            at.append(index)
            progress(sum(map(len, at)), len(source))
    check_any(len(rows), bad)
    index = torch.cat(at)
    return Features(torch.cat(rows), _labels(source, index).to(rows[0].device), index)


def batches(
    model: Backbone,
    source: Source,
    preprocess: Preprocess,
    batch_size: int,
    threads: int,
    bad: list[Bad],
) -> Iterator[tuple[Float[Tensor, "b c h w"], Int[Tensor, "b"]]]:
    """Pictures on the model's device, with their position in the source; `bad` takes the others."""
    device = next(model.parameters()).device
    stream = pictures(
        source,
        size=preprocess.size,
        resize=preprocess.resize,
        interpolation=preprocess.interpolation,
        normalize=preprocess.normalize,
        batch_size=batch_size,
        threads=threads,
        bad=bad,
    )
    with contextlib.closing(stream):
        for x, index in stream:
            yield x.to(device), index


def check_any(read: int, bad: list[Bad]) -> None:
    """Raise where nothing at all could be read."""
    if not read:
        raise ValueError(
            f"setting data: none of {len(bad)} pictures could be read; "
            f"the first: {bad[0].name}: {bad[0].reason}"
        )


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradient; every module gets its own training flag back."""
    flags = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in flags:
            module.training = training


def _take(model: Backbone, x: Float[Tensor, "b c h w"], kind: Kind) -> Float[Tensor, "b d"]:
    if kind == "layers" and isinstance(model, PixelBackbone):
        return torch.cat(model.layers(x), 1)  # [B, (depth + 1) D]
    if kind == "pooled" or not isinstance(model, PatchBackbone):
        return model(x)
    layers = model.layers(x, blocks(model))
    tokens = [t[:, 0] if model.prefix else t.mean(1) for t in layers]
    if kind == "cls-4-mean":
        tokens.append(layers[-1][:, model.prefix :].mean(1))
    return torch.cat(tokens, 1)  # [B, 4D or 5D]


def blocks(model: PatchBackbone) -> int:
    """Whose CLS tokens the linear protocols see."""
    return min(4, model.depth)


def _labels(source: Source, index: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    if source.labels is None:
        return torch.full_like(index, -1)
    return torch.from_numpy(source.labels)[index]


class Data:
    """What a protocol measures on; features are taken once and shared by protocols.

    With a `cache` folder they are also kept on disk, by a key of the network's weights, the
    pictures' content and the preprocessing: after any change there is another key.
    """

    def __init__(
        self,
        model: Backbone,
        train: Source,
        test: Source,
        *,
        normalize: Normalize,
        batch_size: int = 256,
        threads: int = 2,
        seed: int = 0,
        epochs: int = 0,
        lists: Path | None = None,
        cache: Path | None = None,
        progress: Progress = quiet,
    ) -> None:
        self.model, self.train, self.test, self.seed = model, train, test, seed
        self.classes = len(train.classes)
        self.preprocess = preprocess_for(model, normalize)
        self.batch_size, self.threads = batch_size, threads
        self.epochs = epochs  # of fine-tuning; 0: the protocol's
        self.lists = lists  # where few-label protocols name the pictures they used
        self.progress, self._cache = progress, cache
        self._taken: dict[tuple[Kind, bool], Features] = {}

    def features(self, kind: Kind) -> tuple[Features, Features]:
        """Features of the training and the test pictures, labels in the training set's classes."""
        bank, query = self.rows(kind, train=True), self.rows(kind, train=False)
        own = translate(self.train.classes, self.test.classes).to(query.y.device)
        return bank, Features(query.x, own[query.y], query.index)

    def rows(self, kind: Kind, *, train: bool) -> Features:
        """Features of the training or the test pictures, labels in their own classes."""
        if (kind, train) not in self._taken:
            self._taken[kind, train] = self._features(self.train if train else self.test, kind)
        return self._taken[kind, train]

    def _features(self, source: Source, kind: Kind) -> Features:
        if self._cache is None:
            return self._extract(source, kind)
        key = cache_key(self.model, source, self.preprocess, kind, self.threads)
        path = self._cache / f"{key}.safetensors"
        if path.exists():
            return _load(path, source, next(self.model.parameters()).device)
        features = self._extract(source, kind)
        _save(path, features)
        return features

    def _extract(self, source: Source, kind: Kind) -> Features:
        return extract(
            self.model,
            source,
            self.preprocess,
            kind=kind,
            batch_size=self.batch_size,
            threads=self.threads,
            progress=self.progress,
        )


def translate(train: tuple[str, ...], test: tuple[str, ...]) -> Int[Tensor, "k"]:
    """For each class of the test set, its number in the training set."""
    if strange := sorted(set(test) - set(train)):
        raise ValueError(
            f"setting eval-data: class {strange[0]!r} is not among the classes of data; "
            "give both the same class names"
        )
    return torch.tensor([train.index(name) for name in test])


def cache_key(
    model: nn.Module, source: Source, preprocess: Preprocess, kind: Kind, threads: int = 2
) -> str:
    """Hash of the network, its weights, all decoded pictures and the preprocessing."""
    settings = json.dumps([VERSION, kind, asdict(preprocess)])
    total = hashlib.blake2b(settings.encode(), digest_size=20)
    total.update(weights_hash(model).encode())
    with ThreadPoolExecutor(threads) as pool:
        for digest in pool.map(lambda i: _picture_hash(source, i), range(len(source))):
            total.update(digest)
    return total.hexdigest()


def weights_hash(model: nn.Module) -> str:
    """Hash of the network's printed structure and of every parameter and buffer."""
    total = hashlib.blake2b(repr(model).encode(), digest_size=20)
    for name, value in sorted(model.state_dict().items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def _picture_hash(source: Source, i: int) -> bytes:
    try:
        x = source.read(i)
    except BadPicture as bad:  # features leave it out, so its reason stands for it
        return hashlib.blake2b(str(bad).encode(), digest_size=16).digest()
    pixels = x.contiguous().numpy().tobytes()
    return hashlib.blake2b(f"{tuple(x.shape)}".encode() + pixels, digest_size=16).digest()


def _save(path: Path, features: Features) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({"x": features.x.cpu().contiguous(), "index": features.index}, beside)
    os.replace(beside, path)


def _load(path: Path, source: Source, device: torch.device) -> Features:
    try:
        rows = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"cache {path}: damaged ({error}); delete this file") from None
    index = rows["index"]
    return Features(rows["x"].to(device), _labels(source, index).to(device), index)
