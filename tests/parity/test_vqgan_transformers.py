"""VQGAN against transformers' two networks of the same kind with the same weights.

Chameleon's has attention where one likes and no decoder; Janus's has a decoder, whose levels it
numbers the other way around.
"""

import re

import pytest
import torch
from safetensors.torch import save_file
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig, JanusVQVAE, JanusVQVAEConfig

from saccade import tokenizers
from saccade.tokenizers.vqgan import VQGAN

LEVELS = 3
SIZES = {
    "base_channels": 32,
    "channel_multiplier": [1, 2, 2],
    "num_res_blocks": 2,
    "latent_channels": 6,
    "embed_dim": 4,
    "num_embeddings": 40,
}


@torch.no_grad()
def settled(net):
    for p in net.parameters():  # norms and biases start at values that hide mistakes
        p.copy_(p + 0.1 * torch.randn_like(p))
    net.quantize.embedding.weight.copy_(torch.randn_like(net.quantize.embedding.weight))
    return net.eval()


def ours(net, folder):
    state = {
        re.sub(r"decoder\.up\.(\d)", lambda m: f"decoder.up.{LEVELS - 1 - int(m[1])}", k): v
        for k, v in net.state_dict().items()
    }
    save_file(state, folder / "vq.safetensors")
    return tokenizers.load(str(folder / "vq.safetensors"), 3)


@torch.no_grad()
@pytest.mark.parametrize("attended", [[16], []])
def test_codes_equal_those_of_chameleon(tmp_path, attended):
    cfg = ChameleonVQVAEConfig(resolution=32, attn_resolutions=attended, **SIZES)
    net = settled(ChameleonVQVAE(cfg))
    tokenizer, x = ours(net, tmp_path), torch.rand(2, 3, 32, 24)
    torch.testing.assert_close(tokenizer.encoder(2 * x - 1), net.encoder(2 * x - 1))
    codes = tokenizer.encode(x, (8, 6))
    assert codes.flatten().equal(net.encode(2 * x - 1).image_tokens)
    assert len(codes.unique()) > 5


@torch.no_grad()
def test_pictures_equal_those_of_janus(tmp_path):
    net = settled(JanusVQVAE(JanusVQVAEConfig(**SIZES)))
    tokenizer = ours(net, tmp_path)
    codes = torch.randint(0, 40, (2, 4, 6))
    vectors = net.quantize.embedding(codes).movedim(-1, 1)
    want = (net.decoder(net.post_quant_conv(vectors)) + 1) / 2
    assert 0.2 < ((want > 0) & (want < 1)).float().mean() < 1  # some are clipped
    torch.testing.assert_close(
        tokenizer.decode(codes, (16, 24)), want.clamp(0, 1), atol=1e-5, rtol=1e-5
    )


def test_the_released_sizes_are_read_off_the_names_of_the_weights(tmp_path):
    """ImageNet at f16 and 1,024 codes: attention at 16 x 16 of 256 pixels, 2 blocks a level."""
    with torch.device("meta"):
        cfg = ChameleonVQVAEConfig(resolution=256, attn_resolutions=[16], num_embeddings=1024)
        net = ChameleonVQVAE(cfg)
    tokenizer = VQGAN(tmp_path / "last.ckpt", net.state_dict())
    assert (tokenizer.stride, tokenizer.codes, tokenizer.decodes) == (16, 1024, False)
    assert [len(level.attn) for level in tokenizer.encoder.down] == [0, 0, 0, 0, 2]
    count = sum(p.numel() for p in net.encoder.parameters())
    assert sum(p.numel() for p in tokenizer.encoder.parameters()) == count
