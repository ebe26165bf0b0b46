"""SimMIM and MLM against transformers, I-JEPA against transformers and lightly: same weights."""

import torch
from lightly.models.modules.ijepa_timm import IJEPAPredictorTIMM
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from toys import CLOCK, noise
from transformers import (
    IJepaConfig,
    IJepaModel,
    SwinConfig,
    SwinForMaskedImageModeling,
    ViTConfig,
    ViTForMaskedImageModeling,
)

from saccade.backbones.timm_adapter import StagedNet, ViT
from saccade.core import View
from saccade.methods.ijepa import IJEPA
from saccade.methods.mlm import MLM
from saccade.methods.simmim import SimMIM
from saccade.nn.patches import enlarged
from saccade.recipe import BackboneConfig

CFG = BackboneConfig(image_size=32)
NAMES = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.o_proj",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
SIZES = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "layer_norm_eps": 1e-6,
}


def stirred(task):
    """Biases, norms and tokens start at values that hide mistakes."""
    with torch.no_grad():
        for p in task.parameters():
            if p.requires_grad and (p.ndim == 1 or p.shape[0] == 1):
                p.add_(0.1 * torch.randn_like(p))
    return task.eval()


def vit(**settings):
    torch.manual_seed(0)
    shape = {"embed_dim": 32, "depth": 2, "num_heads": 2, "dynamic_img_size": True} | settings
    return ViT(VisionTransformer(32, 8, num_classes=0, **shape), CFG)


def block_state(name, block):
    state = {}
    for ours, theirs in NAMES.items():
        for kind, value in block.get_submodule(ours).state_dict().items():
            state[f"{name}.{theirs}.{kind}"] = value
    for kind, value in block.attn.qkv.state_dict().items():
        for part, rows in zip("qkv", value.chunk(3), strict=True):
            state[f"{name}.attention.{part}_proj.{kind}"] = rows
    return state


def modules_state(pairs):
    return {f"{n}.{k}": v for n, m in pairs.items() for k, v in m.state_dict().items()}


def vit_state(net, front):
    state = modules_state(
        {
            f"{front}embeddings.patch_embeddings.projection": net.patch_embed.proj,
            f"{front}layernorm": net.norm,
        }
    )
    state[f"{front}embeddings.position_embeddings"] = net.pos_embed
    for i, block in enumerate(net.blocks):
        state |= block_state(f"{front}layers.{i}", block)
    return state


def loaded(model, state, unused=()):
    report = model.load_state_dict(state, strict=False)
    assert not report.unexpected_keys
    assert [k for k in report.missing_keys if "relative_position_index" not in k] == list(unused)
    return model.eval()


def compare(step, out, weight, other):
    torch.testing.assert_close(step.loss, out.loss, atol=1e-6, rtol=1e-5)
    step.loss.backward()
    out.loss.backward()
    torch.testing.assert_close(weight.grad, other.grad, atol=1e-6, rtol=1e-3)


def masked_vit(task, weight, bias):
    """transformers' ViT, whose decoder's channels stand as (channel, row, column)."""
    net = task.encoder.net
    state = vit_state(net, "vit.") | {
        "vit.embeddings.cls_token": net.cls_token,
        "vit.embeddings.mask_token": task.mask_token[None, None],
        "decoder.0.weight": weight,
        "decoder.0.bias": bias,
    }
    return loaded(ViTForMaskedImageModeling(ViTConfig(**SIZES, encoder_stride=8)), state)


def test_simmim_with_a_vit_equals_transformers():
    task = stirred(SimMIM(SimMIM.Config(mask_size=16, views=(View(size=32),)), vit()))
    batch = noise(b=3, sizes=(32,))
    model = masked_vit(task, task.pixels.weight, task.pixels.bias)
    mask = enlarged(task.choose(batch.key), 2).flatten(1)
    out = model(batch.images[0], bool_masked_pos=mask)
    rebuilt = task.rebuild(task.encode(batch.images[0], task.choose(batch.key)))
    torch.testing.assert_close(rebuilt, out.reconstruction, atol=1e-5, rtol=1e-4)
    embedding = model.vit.embeddings.patch_embeddings.projection.weight
    compare(task(batch, CLOCK), out, task.encoder.net.patch_embed.proj.weight, embedding)
    token = model.vit.embeddings.mask_token.grad[0, 0]
    torch.testing.assert_close(task.mask_token.grad, token, atol=1e-6, rtol=1e-3)


def test_mlm_with_l1_equals_transformers():
    task = stirred(MLM(MLM.Config(mask_ratio=0.5, target="l1", views=(View(size=32),)), vit()))
    batch = noise(b=3, sizes=(32,))
    weight = task.head.weight.unflatten(0, (64, 3)).transpose(0, 1).flatten(0, 1)[..., None, None]
    bias = task.head.bias.unflatten(0, (64, 3)).T.flatten()
    model = masked_vit(task, weight, bias)
    out = model(batch.images[0], bool_masked_pos=task.choose(batch.key, (4, 4)))
    embedding = model.vit.embeddings.patch_embeddings.projection.weight
    compare(task(batch, CLOCK), out, task.encoder.net.patch_embed.proj.weight, embedding)


def swin(window):
    torch.manual_seed(0)
    shape = {"embed_dim": 8, "depths": (2, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
    net = SwinTransformer(
        64, 4, num_classes=0, window_size=window, strict_img_size=False, drop_path_rate=0, **shape
    )
    return StagedNet(net, "swin", BackboneConfig(image_size=64), frozenset())


def swin_state(task):
    net = task.encoder.net
    pairs = {
        "swin.embeddings.patch_embeddings.projection": net.patch_embed.proj,
        "swin.embeddings.norm": net.patch_embed.norm,
        "swin.layernorm": net.norm,
        "decoder.0": task.pixels,
    }
    state = {"swin.embeddings.mask_token": task.mask_token[None, None]}
    for i, stage in enumerate(net.layers):
        if i:  # theirs stand at the end of the stage before
            pairs[f"swin.encoder.layers.{i - 1}.downsample"] = stage.downsample
        for j, block in enumerate(stage.blocks):
            name = f"swin.encoder.layers.{i}.blocks.{j}"
            table = f"{name}.attention.relative_position_bias.relative_position_bias_table"
            state |= block_state(name, block)
            state[table] = block.attn.relative_position_bias_table
    return state | modules_state(pairs)


def test_simmim_with_a_swin_equals_transformers():
    task = stirred(SimMIM(SimMIM.Config(mask_size=32, views=(View(size=64),)), swin(2)))
    with torch.no_grad():
        for name, p in task.named_parameters():
            if name.endswith("bias_table"):
                p.normal_()
    batch = noise(b=2, sizes=(64,))
    cfg = SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[2, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        encoder_stride=32,
    )
    model = loaded(SwinForMaskedImageModeling(cfg), swin_state(task))
    mask = enlarged(task.choose(batch.key), 8)
    out = model(batch.images[0], bool_masked_pos=mask.flatten(1))
    rebuilt = task.rebuild(task.encode(batch.images[0], task.choose(batch.key)))
    torch.testing.assert_close(rebuilt, out.reconstruction, atol=1e-5, rtol=1e-4)
    embedding = model.swin.embeddings.patch_embeddings.projection.weight
    compare(task(batch, CLOCK), out, task.encoder.net.patch_embed.proj.weight, embedding)


def ijepa():
    encoder = vit(class_token=False, global_pool="avg", fc_norm=False)
    cfg = IJEPA.Config(
        min_keep=2,
        predictor_dim=16,
        predictor_depth=2,
        predictor_heads=2,
        views=(View(size=32),),
    )
    return stirred(IJEPA(cfg, encoder))


def test_encoder_of_ijepa_equals_transformers():
    task = ijepa()
    model = IJepaModel(IJepaConfig(**SIZES), add_pooling_layer=False)
    model = loaded(model, vit_state(task.encoder.net, ""))
    x = noise(b=2, sizes=(32,)).images[0]
    theirs = model(x).last_hidden_state
    torch.testing.assert_close(task.encoder.encode(task.encoder.tokens(x)), theirs)


def test_predictor_of_ijepa_equals_lightlys():
    task, batch = ijepa(), noise(b=2, sizes=(32,))
    ours = task.predictor
    theirs = IJEPAPredictorTIMM(16, 2, 32, 16, 2)
    state = {
        "decoder.mask_token": ours.mask_token[0],
        "decoder.pos_embed": theirs.decoder.pos_embed,  # its own
        **modules_state(
            {
                "decoder.blocks": ours.blocks,
                "decoder.norm": ours.norm,
                "predictor_embed": ours.embed,
                "predictor_proj": ours.features,
            }
        ),
    }
    loaded(theirs, state)
    context, targets = task.choose(batch.key)
    seen = torch.randn(2, context.shape[1], 32)
    found = theirs(seen, [context], list(targets.unbind(1)))  # [T B, M, D]
    want = found.unflatten(0, (4, 2)).transpose(0, 1)
    torch.testing.assert_close(ours(seen, context, targets), want, atol=1e-5, rtol=1e-4)
