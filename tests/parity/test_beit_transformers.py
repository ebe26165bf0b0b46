"""BEiT with timm's encoder against transformers' with the same weights, mask and codes."""

import pytest
import torch
from toys import CLOCK, noise
from transformers import BeitConfig, BeitForMaskedImageModeling

from saccade import backbones
from saccade.core import View
from saccade.methods.beit import BEiT
from saccade.recipe import BackboneConfig
from saccade.tokenizers.color import Color

NAME, DIM, DEPTH = "beit_pico_shared_patch4_32", 96, 6


def ours():
    torch.manual_seed(0)
    encoder = backbones.create(BackboneConfig(name=NAME, image_size=32))
    cfg = BEiT.Config(tokenizer="color", masked=30, min_block=4, views=(View(size=32),))
    task = BEiT(cfg, encoder).eval()
    with torch.no_grad():  # tables, biases and scales start at values that hide mistakes
        for p in task.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return task


def theirs(task):
    cfg = BeitConfig(
        image_size=32,
        patch_size=4,
        hidden_size=DIM,
        num_hidden_layers=DEPTH,
        num_attention_heads=3,
        intermediate_size=4 * DIM,
        vocab_size=512,
        use_mask_token=True,
        use_shared_relative_position_bias=True,
        use_mean_pooling=True,  # the first of its two last norms becomes the identity
        layer_scale_init_value=0.1,
        layer_norm_eps=1e-6,
        drop_path_rate=0.0,
    )
    model = BeitForMaskedImageModeling(cfg).eval()
    report = model.load_state_dict(translated(task), strict=False)
    assert not report.unexpected_keys
    assert not report.missing_keys
    return model


def translated(task):
    net = task.encoder.net
    state = {
        "beit.embeddings.cls_token": net.cls_token,
        "beit.embeddings.mask_token": task.mask_token,
        "beit.shared_position_bias.relative_position_bias_table": (
            net.rel_pos_bias.relative_position_bias_table
        ),
    }
    pairs = {
        "beit.embeddings.patch_embeddings.projection": net.patch_embed.proj,
        "layernorm": net.fc_norm,
        "lm_head": task.head,
    }
    for i, block in enumerate(net.blocks):
        at, attn = f"beit.layers.{i}", block.attn
        pairs |= {
            f"{at}.layernorm_before": block.norm1,
            f"{at}.layernorm_after": block.norm2,
            f"{at}.attention.o_proj": attn.proj,
            f"{at}.mlp.fc1": block.mlp.fc1,
            f"{at}.mlp.fc2": block.mlp.fc2,
        }
        state |= {f"{at}.lambda_1": block.gamma_1, f"{at}.lambda_2": block.gamma_2}
        state |= {f"{at}.attention.q_proj.bias": attn.q_bias}
        state |= {f"{at}.attention.v_proj.bias": attn.v_bias}
        for part, rows in zip("qkv", attn.qkv.weight.chunk(3), strict=True):
            state[f"{at}.attention.{part}_proj.weight"] = rows
    for name, module in pairs.items():
        state |= {f"{name}.{k}": v for k, v in module.state_dict().items()}
    return state


def test_loss_scores_and_gradients_equal_transformers():
    task, batch = ours(), noise(b=3, sizes=(32,))
    model, image = theirs(task), batch.images[0]
    mask = task.choose(batch.key)
    codes = Color().encode(image, (8, 8)).flatten(1)
    step = task(batch, CLOCK)
    out = model(image, bool_masked_pos=mask, labels=codes[mask])
    torch.testing.assert_close(step.loss, out.loss, atol=1e-5, rtol=1e-5)
    scores = task.head(task.encode(image, mask))
    torch.testing.assert_close(scores, out.logits, atol=2e-4, rtol=1e-4)

    step.loss.backward()
    out.loss.backward()
    mine = task.encoder.net.rel_pos_bias.relative_position_bias_table.grad
    other = model.beit.shared_position_bias.relative_position_bias_table.grad
    torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-3)
    mine, other = task.mask_token.grad, model.beit.embeddings.mask_token.grad
    torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("grid", [(4, 4), (2, 5)])
def test_distances_stand_where_transformers_has_them(grid):
    from timm.models.beit import gen_relative_position_index
    from transformers.models.beit.modeling_beit import BeitRelativePositionBias

    want = BeitRelativePositionBias.generate_relative_position_index(grid)
    assert torch.equal(gen_relative_position_index(grid), want)
