"""The contract between an algorithm and the engine that trains it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .nn.random import permutation

Op = Literal["flip", "jitter", "grayscale", "blur", "solarize", "strong"]


@dataclass(frozen=True, slots=True)
class Clock:
    """Where training is: handed to every hook, so that no hook needs the engine."""

    step: int
    total: int  # steps of the whole run
    epoch_steps: int

    @property
    def epoch(self) -> int:
        return self.step // self.epoch_steps

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1)."""
        return self.step / max(self.total, 1)


@dataclass(frozen=True, slots=True)
class Step:
    """What one forward pass returns: the scalar to minimize, and detached scalars to plot."""

    loss: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None  # [B, D] detached representation of one view: health reads it
    outputs: Tensor | None = None  # [N, K] detached, what the loss compares: constant in collapse


@dataclass(frozen=True, kw_only=True)
class StrongSet:
    """Operations drawn anew, with replacement, for each view: RandAugment's or CLSA's."""

    name: Literal["none", "randaugment", "increasing", "clsa"] = "none"
    count: int = 2  # operations drawn
    chance: float = 0.5  # of each drawn one to happen
    magnitude: float = 10.0  # out of 10; CLSA draws whole ones from 1 to 9
    deviation: float = 0.5  # of the magnitude from draw to draw; CLSA has none


@dataclass(frozen=True, kw_only=True)
class View:
    """One row of a paper's augmentation table. Probabilities unless said otherwise."""

    count: int = 1
    size: int = 224  # pixels
    crop: tuple[float, float] = (0.08, 1.0)  # range of area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # range of width / height
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    flip: float = 0.5
    jitter: float = 0.8
    strength: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)  # b, c, s, h
    grayscale: float = 0.2
    blur: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)  # pixels
    solarize: float = 0.0
    strong: StrongSet = StrongSet()
    order: tuple[Op, ...] = ("flip", "jitter", "grayscale", "blur", "solarize", "strong")


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """A batch of augmented views of the same B images."""

    images: list[Tensor]  # V x [B, C, H, W], normalized
    index: Tensor  # [B] which image of the dataset
    key: Tensor  # [B] int64, a key for (seed, epoch, image): `nn.random` draws from it
    boxes: list[Tensor] = field(default_factory=list)  # V x [B, 4] crop in the image, 0..1, xyxy
    flips: list[Tensor] = field(default_factory=list)  # V x [B] was it mirrored
    labels: Tensor | None = None  # [B] class of each image, -1 without; None: data without labels
    mean: tuple[float, ...] = (0.0,)  # per channel: what `images` were normalized by
    std: tuple[float, ...] = (1.0,)

    def pixels(self, view: int = 0) -> Float[Tensor, "b c H W"]:
        """The images of a view before they were normalized: in [0, 1] where they are 8-bit."""
        x = self.images[view]
        return x * x.new_tensor(self.std)[:, None, None] + x.new_tensor(self.mean)[:, None, None]


@dataclass(frozen=True, kw_only=True)
class Framing:
    """How whole pictures are sized and mirrored: the augmentation table of detection."""

    short: tuple[int, ...] = (640, 672, 704, 736, 768, 800)  # pixels: training draws one
    test_short: int = 800  # pixels
    longest: int = 1333  # pixels: a long picture is made smaller than `short` says
    flip: float = 0.5  # probability


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenes:
    """A batch of whole pictures, zeros around the smaller ones, and the objects in them."""

    images: Tensor  # [B, C, H, W] normalized
    sizes: list[tuple[int, int]]  # height and width of each within H and W
    stored: list[tuple[int, int]]  # height and width of each as it lies in the data
    index: Tensor  # [B] which picture of the data
    boxes: list[Tensor] = field(default_factory=list)  # B x [N, 4] xyxy, pixels of `images`
    labels: list[Tensor] = field(default_factory=list)  # B x [N] classes from 0
    masks: list[Tensor] = field(default_factory=list)  # B x [N, h, w] 0 or 1, where asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The objects that a system sees in one picture, best first, in the stored pixels."""

    boxes: Tensor  # [N, 4] xyxy
    labels: Tensor  # [N] classes from 0
    scores: Tensor  # [N] 0..1
    masks: Tensor | None = None  # [N, h, w] bool, where the system gives any


IGNORED = 255  # the label of pixels that neither train nor count


@dataclass(frozen=True, kw_only=True)
class Cropping:
    """How pictures and their masks are sized, cut and changed: the augmentation table of
    segmentation. A test sees whole pictures."""

    short: int = 0  # pixels of the short side, in a test too; 0 keeps pictures as they are
    scale: tuple[float, float] = (0.5, 2.0)  # of that size, drawn evenly
    size: tuple[int, int] = (512, 512)  # height and width of the crop, pixels
    flip: float = 0.5  # probability
    jitter: float = 0.0  # probability
    strength: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)  # b, c, s, h


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """A batch of pictures of one size, and the class of every pixel where it is known: at that
    size in training, at the stored one in a test."""

    images: Tensor  # [B, C, H, W] normalized
    stored: list[tuple[int, int]]  # height and width of each as it lies in the data
    index: Tensor  # [B] which picture of the data
    labels: list[Tensor] = field(default_factory=list)  # B x [h, w] uint8: classes, IGNORED


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Which pictures train by their labels: all, some of every class, or those of a list."""

    count: int = 0  # pictures, as many of every class; 0: no limit
    share: float = 1.0  # of all labels, as many of every class
    file: str = ""  # a list of pictures and classes, perhaps guessed: `saccade propagate` writes it
    ratio: float = 1.0  # of the guessed labels, the surest first
    weighted: bool = False  # a guessed label counts by its confidence


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How pictures are cut, to the size of the backbone, and changed to learn classes."""

    crop: tuple[float, float] = (0.08, 1.0)  # range of area
    flip: float = 0.5  # probability
    strength: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # of jitter: b, c, s, h
    strong: StrongSet = StrongSet()


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How pictures of a batch and their labels are mixed; with both, a coin chooses."""

    mixup: float = 0.0  # a of the Beta(a, a) that a share is drawn from; 0: never
    cutmix: float = 0.0  # likewise, for a rectangle
    erase: float = 0.0  # probability of noise over a rectangle


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """A batch of augmented pictures and what is known of their classes."""

    images: Tensor  # [B, C, H, W] normalized
    labels: Tensor  # [B] classes from 0, -1 without
    weights: Tensor  # [B] how much each label counts
    taught: Tensor | None = None  # [B, K] probabilities that a teacher gives the same pictures


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that share a learning rate and a weight decay."""

    params: list[tuple[str, nn.Parameter]]
    lr_scale: float = 1.0
    decay_scale: float = 1.0
    constant_lr: bool = False  # keeps the peak rate: no warm-up, no schedule


class Task(nn.Module, ABC):
    """Something the engine can train.

    A subclass is final: never subclass it again. It has a frozen dataclass `Config` and takes
    `(cfg, ...)` in `__init__`. All its state is a parameter or a buffer.
    """

    additive: bool = False  # a step's gradient is the mean of its parts', batch norm apart
    own_gradients: bool = False  # moves weights by gradients that no optimizer sees

    @abstractmethod
    def forward(self, batch: Any, clock: Clock) -> Step:
        """One training step of the paper."""

    def groups(self) -> Iterable[Group]:
        """Learning-rate and decay scales; each trainable parameter stands in one group."""
        return [Group([(n, p) for n, p in self.named_parameters() if p.requires_grad])]

    def before_epoch(self, clock: Clock) -> None:
        """Whole-dataset work, such as clustering."""

    def before_update(self, clock: Clock) -> None:
        """Gradients are ready, the optimizer has not moved: freeze or clip here."""

    def after_update(self, clock: Clock) -> None:
        """The optimizer has moved: update teachers, renormalize weights."""


class PixelTokenizer(nn.Module, ABC):
    """Turns the cells of a picture into codes 0 ... codes - 1; nothing in it trains."""

    codes: int
    channels: int  # of the picture
    decodes: bool  # whether `decode` can be called

    @abstractmethod
    def encode(self, x: Float[Tensor, "b c H W"], grid: tuple[int, int]) -> Int[Tensor, "b h w"]:
        """Codes of pictures before normalization, at so many rows and columns."""

    @abstractmethod
    def decode(
        self, codes: Int[Tensor, "b h w"], size: tuple[int, int]
    ) -> Float[Tensor, "b c H W"]:
        """Pictures that codes stand for, before normalization, of so many pixels."""


class Backbone(nn.Module, ABC):
    """What every encoder offers, convolutional or transformer."""

    dim: int  # channels of `features`, width of the pooled vector
    channels: int  # of the input picture
    image_size: int  # pixels, the size it was built for
    stride: int  # pixels between cells of the map

    @abstractmethod
    def features(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d h w"]:
        """The last feature map, normalized where the network ends in a norm."""

    @abstractmethod
    def forward(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d"]:
        """The pooled vector: the CLS token where there is one, else the mean of the map."""


class PatchBackbone(Backbone):
    """A plain transformer over a sequence of patches, some of which can be dropped."""

    patch: int  # pixels
    grid: tuple[int, int]  # rows and columns of patches at `image_size`
    depth: int  # blocks
    prefix: int  # tokens in front of the patches: CLS, registers

    @abstractmethod
    def tokens(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b n d"]:
        """Embedded patches with their positions, without prefix tokens, in raster order."""

    @abstractmethod
    def positions(self, height: int, width: int) -> Float[Tensor, "1 n d"]:
        """What `tokens` adds to the embedded patches of a picture of that many pixels."""

    @abstractmethod
    def encode(self, tokens: Float[Tensor, "b m d"]) -> Float[Tensor, "b p d"]:
        """Prefix tokens put in front of any subset of patches, through all blocks and the norm."""

    @abstractmethod
    def encode_and_look(
        self, tokens: Float[Tensor, "b m d"]
    ) -> tuple[Float[Tensor, "b p d"], Float[Tensor, "b heads p"]]:
        """`encode`, and the softmaxed attention of its first token in the last block."""

    @abstractmethod
    def layers(
        self, x: Float[Tensor, "b c H W"], last: int, *, normed: bool = True
    ) -> list[Float[Tensor, "b p d"]]:
        """All tokens after each of the last blocks, oldest first, each through the final norm."""

    @abstractmethod
    def attention(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b heads p p"]:
        """Softmaxed attention of the last block, rows are queries, prefix tokens first."""

    @abstractmethod
    def fix_positions(self, table: Float[Tensor, "n d"]) -> None:
        """Use a table of positions that is not trained; prefix tokens get none."""

    @abstractmethod
    def projection(self) -> nn.Module:
        """The layer that turns the pixels of a patch into a token."""


class StagedBackbone(Backbone):
    """A network in stages, each of which makes the map coarser and wider."""

    widths: tuple[int, ...]  # channels of the map after each stage
    strides: tuple[int, ...]  # pixels between its cells
    patch: int  # pixels of the square that a cell of the stem sees alone; 0 where they overlap
    looks: bool  # whether its last block is attention

    @abstractmethod
    def stem(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d h w"]:
        """What the first stage takes."""

    @abstractmethod
    def stage(self, y: Float[Tensor, "b d h w"], i: int) -> Float[Tensor, "b e i j"]:
        """The map after stage i, without the norm that some networks end in."""

    @abstractmethod
    def encode(self, y: Float[Tensor, "b d h w"]) -> Float[Tensor, "b e i j"]:
        """`features` of a picture, from what `stem` gives of it."""

    @abstractmethod
    def encode_and_look(
        self, y: Float[Tensor, "b d h w"]
    ) -> tuple[Float[Tensor, "b e i j"], Float[Tensor, "b n"]]:
        """`encode`, and the attention that each cell of its map gets in the last block.

        The mean over heads and queries of its window. Raises ValueError without attention.
        """

    @abstractmethod
    def dilate(self, stages: int) -> None:
        """Let the last stages keep the size of the map, by kernels with holes in them."""


class Mechanism(nn.Module, ABC):
    """A layer whose positions take in others by weights that can be read out."""

    adds: ClassVar[bool]  # what it finds to its input; else that is its output

    @abstractmethod
    def look(
        self, x: Float[Tensor, "b c *space"], at: Int[Tensor, "q"]
    ) -> dict[str, Float[Tensor, "b heads q *keys"]]:
        """Weights over its input of the positions `at` of its output, counted in raster order.

        One map for each part of the mechanism, the parts under the names of the paper.
        """


class PixelBackbone(Backbone):
    """A transformer over pixels in raster order, each one of the K colors of a palette.

    In a causal one, place i has seen the pixels before i and no other; else it has seen all.
    """

    palette: Tensor  # [K, 3] in [-1, 1]
    fitted: Tensor  # [] whether the palette was found in pictures, or read from a file
    causal: bool
    depth: int  # blocks

    @abstractmethod
    def pixels(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b n c"]:
        """Of normalized pictures, in raster order and in [-1, 1]."""

    @abstractmethod
    def tokens(self, x: Float[Tensor, "b c H W"]) -> Int[Tensor, "b H W"]:
        """The color of the palette that is nearest to each pixel."""

    @abstractmethod
    def paint(self, tokens: Int[Tensor, "b H W"]) -> Float[Tensor, "b c H W"]:
        """Normalized pictures in the palette's colors."""

    @abstractmethod
    def set_palette(self, colors: Float[Tensor, "k c"]) -> None: ...

    @abstractmethod
    def encode(
        self, tokens: Int[Tensor, "b H W"], hidden: Bool[Tensor, "b H W"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Places after all blocks and the norm; hidden pixels leave only their positions."""

    @abstractmethod
    def scores(self, h: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
        """Logits of the color of each place's own pixel."""

    @abstractmethod
    def layers(self, x: Float[Tensor, "b c H W"]) -> list[Float[Tensor, "b d"]]:
        """Means over places of what each block's first norm gives, then of the last norm."""

    @abstractmethod
    def memory(self, rows: int) -> Float[Tensor, "l 2 b heads n e"]:
        """Room for the keys and values of that many sequences, for `advance`."""

    @abstractmethod
    def advance(
        self, tokens: Int[Tensor, "b m"], at: int, memory: Float[Tensor, "l 2 b heads n e"]
    ) -> Float[Tensor, "b d"]:
        """The place that comes after these tokens, the first of which is pixel `at`.

        Any number of tokens at 0, then one at a time. Of a causal network alone.
        """


E = TypeVar("E", bound=Backbone, covariant=True)


class Method(Task, Generic[E]):
    """A pretraining task for one kind of encoder."""

    encoder: E  # what trains
    remedy: ClassVar[str] = "lower optim.lr"  # what is said where a run collapses
    labelled: ClassVar[bool] = False  # whether it trains on labels

    def kept(self) -> Backbone:
        """What the user takes home: the encoder, or the teacher where the paper keeps that."""
        return self.encoder

    def heads(self) -> dict[str, Tensor]:
        """Layers beyond the encoder that a system takes over, under their names there."""
        return {}

    def draw(self, batch: Views) -> dict[str, Float[Tensor, "b c h w"]]:
        """Pictures of what the method sees in a batch, such as reconstructions, in the pixels of
        `batch.images`: normalized, NaN where there is nothing to show. In evaluation mode."""
        return {}

    def order(self, images: int, seed: int, epoch: int) -> Int[Tensor, "n"]:
        """The pictures of an epoch, in the order of their batches; as many in every epoch.

        Where a picture comes again within an epoch, `i + k * images` draws its views anew.
        """
        return permutation(images, seed, epoch)


class System(Task):
    """A downstream task: it trains on labels and predicts."""

    domain: ClassVar[str]  # the kind of data it works on: a file of domains/
    encoder: Backbone  # what pretraining gave

    @abstractmethod
    def predict(self, inputs: Any) -> Any: ...
