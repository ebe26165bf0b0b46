"""Tiny checkpoints under the published names; tests/parity compares with another network."""

import functools
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from saccade import tokenizers
from saccade.tokenizers.vqgan import Decoder, Encoder, Sizes

SIZES = Sizes(
    channels=3,
    stem=32,
    widths=(32, 64),
    attends=(False, True),
    blocks=1,
    latent=6,
    codes=24,
    code_dim=5,
    scores=False,
)


@functools.cache
@torch.random.fork_rng()
def state(kind="vq", s=SIZES):
    """Weights without order, norms and biases among them."""
    torch.manual_seed(0)
    parts = nn.ModuleDict({"encoder": Encoder(s), "decoder": Decoder(s)})
    parts["quant_conv"] = nn.Conv2d(s.latent, s.code_dim, 1)
    parts["post_quant_conv"] = nn.Conv2d(s.code_dim, s.latent, 1)
    made = {k: v + 0.1 * torch.randn_like(v) for k, v in parts.state_dict().items()}
    vectors = torch.randn(s.codes, s.code_dim) / 4
    if kind == "vq":
        return made | {"quantize.embedding.weight": vectors}
    scores = torch.randn(s.codes, s.code_dim, 1, 1)
    made |= {"quantize.proj.weight": scores, "quantize.proj.bias": torch.randn(s.codes)}
    return made | {"quantize.embed.weight": vectors}


def loaded(path, made):
    torch.save(made, path)
    return tokenizers.load(str(path), 3)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vq", "gumbel"])
def test_a_code_is_the_nearest_vector_or_the_largest_score(tmp_path, kind):
    made = state(kind)
    tokenizer = loaded(tmp_path / "a.pth", made)
    x = torch.rand(4, 3, 12, 8)
    z = tokenizer.quant_conv(tokenizer.encoder(2 * x - 1)).movedim(1, -1)  # [B, h, w, E]
    if kind == "vq":
        want = (z[..., None, :] - made["quantize.embedding.weight"]).norm(dim=-1).argmin(-1)
    else:
        w = made["quantize.proj.weight"][..., 0, 0]
        want = (torch.einsum("bhwe,ke->bhwk", z, w) + made["quantize.proj.bias"]).argmax(-1)
    codes = tokenizer.encode(x, (6, 4))
    assert torch.equal(codes, want)
    assert len(codes.unique()) > 2  # or any codes would be equal
    assert tokenizer.codes == 24
    assert not any(p.requires_grad for p in tokenizer.parameters())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vq", "gumbel"])
def test_decoding_takes_the_vectors_of_codes_to_pictures(tmp_path, kind):
    made = state(kind)
    tokenizer = loaded(tmp_path / "a.pth", made)
    codes = torch.randint(0, 24, (2, 3, 4))
    vectors = made[f"quantize.{'embedding' if kind == 'vq' else 'embed'}.weight"][codes]
    y = tokenizer.decoder(tokenizer.post_quant_conv(vectors.permute(0, 3, 1, 2)))
    assert tokenizer.decodes
    torch.testing.assert_close(tokenizer.decode(codes, (6, 8)), (y / 2 + 0.5).clamp(0, 1))
    assert tokenizer.decode(codes, (9, 9)).shape == (2, 3, 9, 9)


@torch.no_grad()
def test_a_picture_is_brought_to_the_grid_and_to_minus_one_to_one(tmp_path):
    tokenizer = loaded(tmp_path / "a.pth", state())
    seen = []
    tokenizer.encoder.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    assert tokenizer.encode(torch.full((1, 3, 64, 64), 0.75), (4, 3)).shape == (1, 4, 3)
    torch.testing.assert_close(seen[0], torch.full((1, 3, 8, 6), 0.5))
    tokenizer.encode(torch.tensor([-1.0, 2.0])[:, None, None, None].expand(-1, 3, 4, 4), (2, 2))
    assert [seen[1].min(), seen[1].max()] == [-1, 1]


@torch.no_grad()
def test_safetensors_and_halved_weights_are_read_too(tmp_path):
    half = {k: v.bfloat16() for k, v in state("gumbel").items()}
    save_file(half, tmp_path / "a.safetensors")
    tokenizer = tokenizers.load(str(tmp_path / "a.safetensors"), 3)
    for k, v in tokenizer.state_dict().items():
        assert torch.equal(v, half[k].float())


class Writes:
    def __reduce__(self):
        return (open, ("written", "w"))


@torch.no_grad()
def test_a_released_checkpoint_is_read_without_lightning_and_without_its_loss(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("lightning_of_then")
    callback = type("Callback", (), {"__module__": module.__name__})
    monkeypatch.setattr(module, "Callback", callback, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    held = callback()
    held.best = Path("best.ckpt")
    checkpoint = {
        "epoch": 3,
        "callbacks": {callback: {"best": torch.zeros(1), "self": held}},
        "hostile": [Writes()],
        "state_dict": state() | {"loss.discriminator.main.0.weight": torch.zeros(1)},
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    monkeypatch.delitem(sys.modules, module.__name__)
    tokenizer = tokenizers.load(str(tmp_path / "last.ckpt"), 3)
    assert not (tmp_path / "written").exists()
    for k, v in tokenizer.state_dict().items():
        assert torch.equal(v, checkpoint["state_dict"][k])


def test_code_among_the_weights_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(state() | {"quant_conv.bias": Writes()}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt cannot be read as weights \(quant_conv\.bias"):
        tokenizers.load("a.ckpt", 3)
    assert not (tmp_path / "written").exists()


def test_without_a_decoder_there_are_no_pictures(tmp_path):
    made = {k: v for k, v in state().items() if not k.startswith("decoder.")}
    assert not loaded(tmp_path / "a.pt", made).decodes  # post_quant_conv is of no use then


@pytest.mark.parametrize(
    "sizes",
    [
        replace(SIZES, widths=(64, 32, 32), attends=(True, False, True), blocks=2),
        replace(SIZES, widths=(32,), attends=(False,), channels=2, latent=3),
    ],
)
def test_sizes_are_those_of_the_weights(tmp_path, sizes):
    torch.save(state(s=sizes), tmp_path / "a.pt")
    tokenizer = tokenizers.load(str(tmp_path / "a.pt"), sizes.channels)
    levels = len(sizes.widths)
    assert tokenizer.encode(torch.rand(1, sizes.channels, 8, 8), (2, 2)).shape == (1, 2, 2)
    assert tokenizer.stride == 2 ** (levels - 1)
    assert [len(level.attn) > 0 for level in tokenizer.encoder.down] == list(sizes.attends)
    assert [len(level.block) for level in tokenizer.decoder.up] == [sizes.blocks + 1] * levels


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("encoder.conv_in.weight", None, r"has no encoder\.conv_in\.weight"),
        ("encoder.mid.attn_1.k.bias", None, r"has no encoder\.mid\.attn_1\.k\.bias"),
        ("encoder.down.0.block.0.conv1.weight", None, r"has no encoder\.down\.0\.block\.0\.conv1"),
        ("decoder.up.1.upsample.conv.weight", None, r"has no decoder\.up\.1\.upsample"),
        ("quantize.embedding.weight", None, r"has no quantize\.embedding\.weight"),
        ("encoder.conv_out.bias", torch.zeros(2), r"conv_out\.bias of shape \(2,\), which fits no"),
        ("encoder.conv_in.weight", torch.zeros(8, 3, 3, 3), r"of shape \(8, 3, 3, 3\), which fits"),
        ("encoder.conv_in.weight", torch.zeros(()), r"of shape \(\), which fits no VQGAN"),
        ("quantize.used", torch.zeros(3), r"has quantize\.used, which a VQGAN of its other"),
    ],
)
def test_a_weight_that_lacks_or_does_not_fit_is_named(tmp_path, name, value, message):
    made = state() | {name: value}
    torch.save({k: v for k, v in made.items() if v is not None}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=message) as told:
        tokenizers.load(str(tmp_path / "a.pt"), 3)
    assert "\n" not in str(told.value)
    assert str(told.value).startswith(f"setting method.tokenizer: {tmp_path / 'a.pt'} has ")


def test_a_file_that_is_damaged_or_of_another_kind_is_told(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"encoder.a": torch.zeros(9)}, path)
    whole = path.read_bytes()
    for cut in (whole[: len(whole) // 2], b"", b"no weights at all"):
        path.write_bytes(cut)
        with pytest.raises(ValueError, match=r"a\.ckpt cannot be read as weights \(\w+\)"):
            tokenizers.load(str(path), 3)
    for held in ([1, 2], {"model": {}}, {1: torch.zeros(1)}):
        torch.save(held, path)
        with pytest.raises(ValueError, match=r"a\.ckpt cannot be read as weights"):
            tokenizers.load(str(path), 3)
    torch.save({"fc.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="neither DALL-E's encoder nor a VQGAN; give color"):
        tokenizers.load(str(path), 3)
