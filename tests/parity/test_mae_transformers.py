"""MAE with timm's encoder against transformers' ViTMAE with the same weights and the same mask."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from toys import CLOCK, noise
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEEmbeddings

from saccade.backbones.timm_adapter import ViT
from saccade.core import View
from saccade.methods.mae import MAE
from saccade.nn import random
from saccade.nn.functional import take
from saccade.nn.masking import random_order
from saccade.nn.positions import sincos_2d
from saccade.recipe import BackboneConfig

DIM, DEPTH, HEADS = 32, 2, 2
DECODER = {"decoder_dim": 16, "decoder_depth": 2, "decoder_heads": 2}


def ours(norm_pix_loss):
    torch.manual_seed(0)
    net = VisionTransformer(
        32, 8, num_classes=0, embed_dim=DIM, depth=DEPTH, num_heads=HEADS, dynamic_img_size=True
    )
    encoder = ViT(net, BackboneConfig(image_size=32))
    cfg = MAE.Config(views=(View(size=32),), norm_pix_loss=norm_pix_loss, **DECODER)
    task = MAE(cfg, encoder)
    with torch.no_grad():  # biases and norms start at values that hide mistakes
        for p in task.parameters():
            if p.requires_grad and p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
    return task


def theirs(task):
    cfg = ViTMAEConfig(
        image_size=32,
        patch_size=8,
        hidden_size=DIM,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * DIM,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
        layer_norm_eps=1e-6,
        norm_pix_loss=task.cfg.norm_pix_loss,
    )
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
