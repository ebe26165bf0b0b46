"""A small copy of DALL-E's networks under the published names, run by plain functions here."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from saccade import tokenizers
from saccade.tokenizers.dalle import Half

CODES, WIDTH = 12, 8


def shapes(kind, width, codes, first=128):
    """Every weight of the published networks: name to shape."""
    up = kind == "decoder"
    found = {"blocks.input.w": (first, codes, 1, 1) if up else (width, 3, 7, 7)}
    into = first if up else width
    for group in range(1, 5):
        out = width * 2 ** (4 - group if up else group - 1)
        for block in (1, 2):
            at, inner = f"blocks.group_{group}.block_{block}", out // 4
            if into != out:
                found[f"{at}.id_path.w"] = (out, into, 1, 1)
            sides = (1, 3, 3, 3) if up else (3, 3, 3, 1)
            ends = [(inner, into), (inner, inner), (inner, inner), (out, inner)]
            for i, (side, end) in enumerate(zip(sides, ends, strict=True), 1):
                found[f"{at}.res_path.conv_{i}.w"] = (*end, side, side)
            into = out
    found["blocks.output.conv.w"] = (6, width, 1, 1) if up else (codes, 8 * width, 1, 1)
    return found | {k[:-1] + "b": v[:1] for k, v in found.items()}


def state(kind, seed=0):
    g = torch.Generator().manual_seed(seed)
    made = shapes(kind, WIDTH, CODES, 4)
    return {k: torch.randn(v, generator=g) / max(1, v[-1]) / 2 for k, v in made.items()}


def conv(w, name, x):
    kernel = w[f"{name}.w"]
    return F.conv2d(x, kernel, w[f"{name}.b"], padding=(kernel.shape[-1] - 1) // 2)


def network(w, x, up):
    x = conv(w, "blocks.input", x)
    for group in (1, 2, 3, 4):
        for block in (1, 2):
            at = f"blocks.group_{group}.block_{block}"
            y = x
            for i in (1, 2, 3, 4):
                y = conv(w, f"{at}.res_path.conv_{i}", torch.relu(y))
            skip = conv(w, f"{at}.id_path", x) if f"{at}.id_path.w" in w else x
            x = skip + y / 8**2  # 8 layers
        if group < 4:
            x = F.interpolate(x, scale_factor=2, mode="nearest") if up else F.max_pool2d(x, 2)
    return conv(w, "blocks.output.conv", torch.relu(x))


@pytest.fixture
def folder(tmp_path):
    torch.save(state("encoder"), tmp_path / "encoder.pt")
    torch.save(state("decoder", 1), tmp_path / "decoder.pt")
    return tmp_path


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_published_names_and_shapes_are_taken_at_full_size(kind):
    published = shapes(kind, 256, 8192)
    half = Half({k: torch.empty(v, device="meta") for k, v in published.items()}, up=kind[0] == "d")
    assert {k: tuple(v.shape) for k, v in half.state_dict().items()} == published


@torch.no_grad()
def test_codes_are_the_argmax_over_pixels_mapped_to_a_tenth_from_both_ends(folder):
    tokenizer = tokenizers.load(str(folder / "encoder.pt"), 3)
    x = torch.rand(2, 3, 32, 16)
    codes = tokenizer.encode(x, (4, 2))
    want = network(state("encoder"), 0.8 * x + 0.1, False).argmax(1)
    assert torch.equal(codes, want)
    assert len(codes.unique()) > 1  # or any codes would be equal
    assert tokenizer.codes == CODES
    assert not any(p.requires_grad for p in tokenizer.parameters())


@torch.no_grad()
def test_a_picture_of_another_size_is_brought_to_eight_pixels_a_code(folder):
    tokenizer = tokenizers.load(str(folder / "encoder.pt"), 3)
    seen = []
    tokenizer.encoder.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    codes = tokenizer.encode(torch.full((1, 3, 64, 64), 0.5), (4, 4))
    assert codes.shape == (1, 4, 4)
    assert seen[0].shape == (1, 3, 32, 32)
    torch.testing.assert_close(seen[0], torch.full((1, 3, 32, 32), 0.5))
    tokenizer.encode(torch.tensor([-1.0, 2.0])[:, None, None, None].expand(-1, 3, 8, 8), (1, 1))
    assert [seen[1].min().item(), seen[1].max().item()] == pytest.approx([0.1, 0.9])


@torch.no_grad()
def test_decoding_equals_the_published_network(folder):
    tokenizer = tokenizers.load(str(folder / "encoder.pt"), 3)
    assert tokenizer.decodes
    codes = torch.randint(0, CODES, (2, 2, 3))
    y = network(state("decoder", 1), F.one_hot(codes, CODES).movedim(-1, 1).float(), True)[:, :3]
    want = ((y.sigmoid() - 0.1) / 0.8).clamp(0, 1)
    torch.testing.assert_close(tokenizer.decode(codes, (16, 24)), want, atol=1e-6, rtol=1e-5)


def test_without_the_decoder_beside_it_there_are_no_pictures(folder):
    (folder / "decoder.pt").unlink()
    assert not tokenizers.load(str(folder / "encoder.pt"), 3).decodes


def released(w, prefix=""):
    """The tree of modules that the released files hold, of classes absent at reading."""
    node = sys.modules["dall_e.encoder"].Encoder() if not prefix else None
    if f"{prefix}w" in w:
        node = sys.modules["dall_e.utils"].Conv2d()
        node.w, node.b = nn.Parameter(w[f"{prefix}w"]), nn.Parameter(w[f"{prefix}b"])
        return node
    node = node or nn.Sequential()
    names = dict.fromkeys(k.removeprefix(prefix).split(".")[0] for k in w if k.startswith(prefix))
    for name in names:
        node.add_module(name, released(w, f"{prefix}{name}."))
    return node


@pytest.fixture
def theirs(monkeypatch):
    """Stand-ins for DALL-E's package."""
    monkeypatch.setitem(sys.modules, "dall_e", types.ModuleType("dall_e"))
    for name, cls in (("encoder", "Encoder"), ("utils", "Conv2d")):
        module = types.ModuleType(f"dall_e.{name}")
        setattr(module, cls, type(cls, (nn.Module,), {"__module__": module.__name__}))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return monkeypatch


@torch.no_grad()
def test_a_released_module_is_read_without_its_package(folder, theirs):
    torch.save(released(state("encoder")), folder / "encoder.pkl")
    for name in ("dall_e", "dall_e.encoder", "dall_e.utils"):
        theirs.delitem(sys.modules, name)
    tokenizer = tokenizers.load(str(folder / "encoder.pkl"), 3)
    for k, v in state("encoder").items():
        assert torch.equal(tokenizer.encoder.state_dict()[k], v)


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def test_code_in_a_file_is_never_run(tmp_path, capsys):
    torch.save({"blocks.input.w": Evil()}, tmp_path / "encoder.pkl")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        tokenizers.load(str(tmp_path / "encoder.pkl"), 3)
    assert "run" not in capsys.readouterr().out


def test_a_wrong_file_is_told(tmp_path):
    save_file({"blocks.input.w": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"has no blocks\.input\.b"):
        tokenizers.load(str(tmp_path / "a.safetensors"), 3)
    torch.save(state("encoder") | {"more": torch.zeros(1)}, tmp_path / "encoder.pt")
    with pytest.raises(ValueError, match="has more, which DALL-E's encoder has not"):
        tokenizers.load(str(tmp_path / "encoder.pt"), 3)
