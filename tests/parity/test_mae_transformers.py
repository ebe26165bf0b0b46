"""MAE with timm's encoder against transformers' ViTMAE and VideoMAE: same weights, same mask."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from toys import CLOCK, noise, views
from transformers import (
    VideoMAEConfig,
    VideoMAEForPreTraining,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEEmbeddings

from saccade.backbones.timm_adapter import ViT
from saccade.core import View
from saccade.methods.mae import MAE
from saccade.nn import random
from saccade.nn.functional import take
from saccade.nn.masking import random_order
from saccade.nn.patches import patchify
from saccade.nn.positions import sincos_2d
from saccade.recipe import BackboneConfig

DIM, DEPTH, HEADS = 32, 2, 2
DECODER = {"decoder_dim": 16, "decoder_depth": 2, "decoder_heads": 2}
THEIR_DECODER = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
}
SIZES = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": DIM,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": 4 * DIM,
    "layer_norm_eps": 1e-6,
}
VIDEO = {  # VideoMAE's spelling of a block
    "attention.o_proj": "attention.output.dense",
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def ours(norm_pix_loss, channels=3, **settings):
    torch.manual_seed(0)
    shape = {"embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS, "dynamic_img_size": True}
    net = VisionTransformer(32, 8, channels, num_classes=0, **(shape | settings))
    encoder = ViT(net, BackboneConfig(image_size=32, channels=channels))
    cfg = MAE.Config(views=(View(size=32),), norm_pix_loss=norm_pix_loss, **DECODER)
    task = MAE(cfg, encoder)
    with torch.no_grad():  # biases and norms start at values that hide mistakes
        for p in task.parameters():
            if p.requires_grad and p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
    return task


def theirs(task):
    cfg = ViTMAEConfig(norm_pix_loss=task.cfg.norm_pix_loss, **SIZES, **THEIR_DECODER)
    model = ViTMAEForPreTraining(cfg)
    report = model.load_state_dict(translated(task), strict=False)
    assert not report.unexpected_keys
    assert not report.missing_keys
    return model


def translated(task):
    """Our weights under transformers' names, position tables too: its own are zero."""
    net, decoder = task.encoder.net, task.decoder
    state = {
        "vit.embeddings.cls_token": net.cls_token,
        "vit.embeddings.position_embeddings": net.pos_embed,
        "decoder.mask_token": decoder.mask_token,
        "decoder.decoder_pos_embed": torch.cat([torch.zeros(1, 16), decoder.positions])[None],
    }
    pairs = {
        "vit.embeddings.patch_embeddings.projection": net.patch_embed.proj,
        "vit.layernorm": net.norm,
        "decoder.decoder_embed": decoder.embed,
        "decoder.decoder_norm": decoder.norm,
        "decoder.decoder_pred": decoder.pixels,
    }
    for name, module in pairs.items():
        state |= {f"{name}.{k}": v for k, v in module.state_dict().items()}
    for i, block in enumerate(net.blocks):
        state |= block_state(f"vit.layers.{i}", block)
    for i, block in enumerate(decoder.blocks):
        state |= block_state(f"decoder.decoder_layers.{i}", block)
    return state


def block_state(name, block):
    state = {}
    pairs = {
        "layernorm_before": block.norm1,
        "attention.o_proj": block.attn.proj,
        "layernorm_after": block.norm2,
        "mlp.fc1": block.mlp.fc1,
        "mlp.fc2": block.mlp.fc2,
    }
    for part, module in pairs.items():
        state |= {f"{name}.{part}.{k}": v for k, v in module.state_dict().items()}
    for kind, value in block.attn.qkv.state_dict().items():
        for part, rows in zip("qkv", value.chunk(3), strict=True):
            state[f"{name}.attention.{part}_proj.{kind}"] = rows
    return state


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_mask_loss_encoder_and_gradient_equal_transformers(norm_pix_loss):
    task, batch = ours(norm_pix_loss), noise(b=3, sizes=(32,))
    model = theirs(task)
    step = task(batch, CLOCK)
    draws = random.uniform(batch.key, 16, "mask")
    out = model(batch.images[0], noise=draws)
    torch.testing.assert_close(step.loss, out.loss, atol=1e-6, rtol=1e-5)

    order = random_order(batch.key, 16)
    hidden = torch.zeros(3, 16).scatter_(1, order[:, 4:], 1.0)
    assert torch.equal(hidden, out.mask)
    assert torch.equal(order.argsort(1), out.ids_restore)
    latent = model.vit(batch.images[0], noise=draws).last_hidden_state
    seen = task.encoder.encode(take(task.encoder.tokens(batch.images[0]), order[:, :4]))
    torch.testing.assert_close(seen, latent, atol=1e-5, rtol=1e-4)
    guess = task.decoder(seen, order)
    torch.testing.assert_close(guess, take(out.logits, order[:, 4:]), atol=1e-5, rtol=1e-4)

    step.loss.backward()
    out.loss.backward()
    mine = task.encoder.net.patch_embed.proj.weight.grad
    other = model.vit.embeddings.patch_embeddings.projection.weight.grad
    torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-3)


def video(task):
    """VideoMAE for clips of one frame: no CLS, no bias between encoder and decoder."""
    net, decoder, channels = task.encoder.net, task.decoder, task.encoder.channels
    cfg = VideoMAEConfig(
        num_channels=channels,
        num_frames=1,
        tubelet_size=1,
        use_mean_pooling=False,
        **SIZES,
        **THEIR_DECODER,
    )
    model = VideoMAEForPreTraining(cfg)
    torch.nn.init.zeros_(decoder.embed.bias)
    front = "videomae.embeddings.patch_embeddings.projection"
    state = {
        f"{front}.weight": net.patch_embed.proj.weight[:, :, None],
        f"{front}.bias": net.patch_embed.proj.bias,
        "encoder_to_decoder.weight": decoder.embed.weight,
        "mask_token": decoder.mask_token,
    }
    pairs = {"videomae.layernorm": net.norm, "decoder.norm": decoder.norm}
    for name, module in (pairs | {"decoder.head": decoder.pixels}).items():
        state |= {f"{name}.{k}": v for k, v in module.state_dict().items()}
    for at, blocks in (
        ("videomae.encoder.layer", net.blocks),
        ("decoder.decoder_layers", decoder.blocks),
    ):
        for i, block in enumerate(blocks):
            inside = block_state(f"{at}.{i}", block)
            del inside[f"{at}.{i}.attention.k_proj.bias"]  # softmax cancels it
            for mine, its in VIDEO.items():
                inside = {k.replace(mine, its): v for k, v in inside.items()}
            state |= inside
    model.load_state_dict(state)
    model.decoder.norm.eps = 1e-6
    model.videomae.embeddings.position_embeddings = net.pos_embed.detach()
    model.position_embeddings = decoder.positions[None]
    return model


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_videomaes_clip_of_one_frame_but_for_its_norm_of_each_channel(channels):
    task = ours(True, channels, class_token=False, global_pool="avg", fc_norm=False)
    batch, model = views(torch.randn(3, channels, 32, 32)), video(task)
    image, order = batch.images[0], random_order(batch.key, 16)
    hidden = torch.zeros(3, 16, dtype=torch.bool).scatter_(1, order[:, 4:], True)
    out = model(image[:, None], bool_masked_pos=hidden)
    _, guess = task.rebuild(image, order)
    rank = order[:, 4:].argsort(1)  # of hidden patches in raster order
    torch.testing.assert_close(take(guess, rank), out.logits, atol=1e-5, rtol=1e-4)

    step, each = task(batch, CLOCK), patchify(image, 8).unflatten(2, (64, channels))
    each = (each - each.mean(2, keepdim=True)) / each.var(2, keepdim=True).sqrt()
    want = (guess - take(each.flatten(2), order[:, 4:])).square().mean()
    torch.testing.assert_close(out.loss, want, atol=1e-5, rtol=1e-4)
    together = torch.allclose(step.loss, out.loss, atol=1e-5, rtol=1e-4)
    assert together == (channels == 1)
    if channels == 1:
        step.loss.backward()
        out.loss.backward()
        mine = task.encoder.net.patch_embed.proj.weight.grad
        other = model.videomae.embeddings.patch_embeddings.projection.weight.grad[:, :, 0]
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-3)


def test_position_table_equals_transformers():
    cfg = ViTMAEConfig(image_size=40, patch_size=8, hidden_size=32)
    theirs = ViTMAEEmbeddings(cfg)
    theirs.initialize_weights()
    table = theirs.position_embeddings[0]
    torch.testing.assert_close(sincos_2d((5, 5), 32), table[1:].detach())
    assert table[0].eq(0).all()


def test_encoder_starts_with_the_fixed_table_and_a_row_of_zeros_for_cls():
    net = ours(False).encoder.net
    assert torch.equal(net.pos_embed[0, 1:], sincos_2d((4, 4), DIM))
    assert net.pos_embed[0, 0].eq(0).all()
    assert not net.pos_embed.requires_grad
    assert net.cls_token.std().item() == pytest.approx(0.02, rel=0.5)
