import pytest
import torch
import torch.nn.functional as F

from saccade import backbones, tokenizers, weights
from saccade.core import View
from saccade.methods.tokenizer import Tokenizer
from saccade.recipe import BackboneConfig, Normalize

CFG = BackboneConfig(name="vit_pico_patch4_32", image_size=16, drop_path=0.5)
SEEN = Normalize(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


def trained(quantizer):
    torch.manual_seed(0)
    cfg = Tokenizer.Config(
        codes=12,
        code_dim=4,
        hidden=8,
        decoder_depth=2,
        quantizer=quantizer,
        views=(View(size=16),),
    )
    return Tokenizer(cfg, backbones.create(CFG))


def written(task, folder):
    weights.save_backbone(folder / "backbone", task.kept(), CFG, SEEN, {})
    weights.write_state(folder / "heads.safetensors", task.heads())
    return str(folder)


@torch.no_grad()
@pytest.mark.parametrize("quantizer", ["kmeans", "gumbel"])
def test_a_run_folder_gives_the_codes_that_trained(tmp_path, quantizer):
    task = trained(quantizer)
    tokenizer = tokenizers.load(written(task, tmp_path), 3).train()  # it drops no paths
    x = torch.rand(8, 3, 16, 16)
    mean, std = (torch.tensor(v)[:, None, None] for v in (SEEN.mean, SEEN.std))
    y = task.eval().encoder.features((x - mean) / std)  # [B, D, h, w]
    z = torch.einsum("bdhw,ed->bhwe", y, task.coder.front.weight) + task.coder.front.bias
    if quantizer == "kmeans":
        z = torch.einsum("bhwe,ke->bhwk", F.normalize(z, dim=-1), task.coder.codebook)
    codes = tokenizer.encode(x, (4, 4))
    assert torch.equal(codes, z.argmax(-1))
    assert len(codes.unique()) > 2
    vectors = task.coder.codebook[codes].permute(0, 3, 1, 2)
    want = task.coder.decoder(vectors) * std + mean
    torch.testing.assert_close(tokenizer.decode(codes, (16, 16)), want)
    assert tokenizer.decode(codes, (32, 24)).shape == (8, 3, 32, 24)
    assert tokenizer.codes == 12
    assert not any(p.requires_grad for p in tokenizer.parameters())


@torch.no_grad()
def test_a_larger_grid_takes_a_larger_picture(tmp_path):
    tokenizer = tokenizers.load(written(trained("kmeans"), tmp_path), 3)
    x = torch.rand(2, 3, 16, 16)
    large = F.interpolate(x, (32, 32), mode="bicubic", antialias=True)
    assert torch.equal(tokenizer.encode(x, (8, 8)), tokenizer.encode(large, (8, 8)))


def test_another_run_is_refused(tmp_path):
    weights.save_backbone(tmp_path / "backbone", trained("kmeans").kept(), CFG, SEEN, {})
    with pytest.raises(ValueError, match="no run of --method tokenizer"):
        tokenizers.load(str(tmp_path), 3)


def test_a_damaged_file_is_told(tmp_path):
    written(trained("kmeans"), tmp_path)
    (tmp_path / "heads.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"heads\.safetensors is damaged"):
        tokenizers.load(str(tmp_path), 3)
