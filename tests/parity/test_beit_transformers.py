"""BEiT and Data2Vec with timm's encoder against transformers' with the same weights and mask."""

import pytest
import torch
import torch.nn.functional as F
from toys import CLOCK, noise
from transformers import (
    BeitConfig,
    BeitForMaskedImageModeling,
    Data2VecVisionConfig,
    Data2VecVisionModel,
)

from saccade import backbones
from saccade.core import View
from saccade.methods.beit import BEiT
from saccade.methods.data2vec import Data2Vec
from saccade.recipe import BackboneConfig
from saccade.tokenizers.color import Color

NAME, DIM, DEPTH = "beit_pico_shared_patch4_32", 96, 6
SIZES = {
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": DIM,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 3,
    "intermediate_size": 4 * DIM,
    "use_mask_token": True,
    "use_shared_relative_position_bias": True,
    "layer_scale_init_value": 0.1,
    "layer_norm_eps": 1e-6,
    "drop_path_rate": 0.0,
}
DATA2VEC = (  # its spelling of the same weights
    ("beit.layers", "encoder.layer"),
    ("beit.shared_position_bias", "encoder.relative_position_bias"),
    ("beit.", ""),
    ("attention.q_proj", "attention.attention.query"),
    ("attention.k_proj", "attention.attention.key"),
    ("attention.v_proj", "attention.attention.value"),
    ("attention.o_proj", "attention.output.dense"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
)


def ours(method=BEiT, **settings):
    torch.manual_seed(0)
    encoder = backbones.create(BackboneConfig(name=NAME, image_size=32))
    task = method(method.Config(views=(View(size=32),), **settings), encoder).eval()
    with torch.no_grad():  # tables, biases and scales start at values that hide mistakes
        for p in task.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return task


def theirs(task):
    # the first of its two last norms becomes the identity
    cfg = BeitConfig(vocab_size=512, use_mean_pooling=True, **SIZES)
    model = BeitForMaskedImageModeling(cfg).eval()
    state = translated(task.encoder.net, task.mask_token)
    state |= {f"lm_head.{k}": v for k, v in task.head.state_dict().items()}
    report = model.load_state_dict(state, strict=False)
    assert not report.unexpected_keys
    assert not report.missing_keys
    return model


def data2vec(net, mask_token):
    model = Data2VecVisionModel(Data2VecVisionConfig(use_mean_pooling=False, **SIZES)).eval()
    state = translated(net, mask_token)
    for mine, its in DATA2VEC:
        state = {k.replace(mine, its): v for k, v in state.items()}
    model.load_state_dict(state)
    return model


def translated(net, mask_token):
    state = {
        "beit.embeddings.cls_token": net.cls_token,
        "beit.embeddings.mask_token": mask_token,
        "beit.shared_position_bias.relative_position_bias_table": (
            net.rel_pos_bias.relative_position_bias_table
        ),
    }
    pairs = {
        "beit.embeddings.patch_embeddings.projection": net.patch_embed.proj,
        "layernorm": net.fc_norm,
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
    task, batch = ours(tokenizer="color", masked=30, min_block=4), noise(b=3, sizes=(32,))
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


def test_data2vecs_loss_and_gradients_equal_transformers_encoders_and_the_published_loss():
    task, batch = ours(Data2Vec, last_layers=3), noise(b=3, sizes=(32,))
    image, mask = batch.images[0], task.choose(batch.key, (8, 8))
    student, teacher = (
        data2vec(m.net, task.mask_token) for m in (task.encoder, task.teacher.module)
    )
    with torch.no_grad():
        layers = teacher(image, output_hidden_states=True).hidden_states[-3:]
        target = torch.stack([F.layer_norm(h, (DIM,)) for h in layers]).mean(0)
        target = F.layer_norm(target, (DIM,))[:, 1:]
    torch.testing.assert_close(task.target(image), target, atol=1e-4, rtol=1e-4)
    z = task.head(student(image, bool_masked_pos=mask).last_hidden_state[:, 1:][mask])
    theirs = F.smooth_l1_loss(z, target[mask], beta=2.0)
    step = task(batch, CLOCK)
    torch.testing.assert_close(step.loss, theirs, atol=1e-5, rtol=1e-5)

    step.loss.backward()
    theirs.backward()
    mine = task.encoder.net.rel_pos_bias.relative_position_bias_table.grad
    other = student.encoder.relative_position_bias.relative_position_bias_table.grad
    torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-3)
    other = student.embeddings.mask_token.grad
    torch.testing.assert_close(task.mask_token.grad, other, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("grid", [(4, 4), (2, 5)])
def test_distances_stand_where_transformers_has_them(grid):
    from timm.models.beit import gen_relative_position_index
    from transformers.models.beit.modeling_beit import BeitRelativePositionBias

    want = BeitRelativePositionBias.generate_relative_position_index(grid)
    assert torch.equal(gen_relative_position_index(grid), want)
