"""A file in each layout of the field gives the features of the network it was made from."""

import argparse
import json

import pytest
import pytorch_lightning as pl
import timm
import torch
import torchvision
import transformers
from safetensors.torch import load_file, save_file
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from timm.utils import CheckpointSaver

from saccade import layouts, weights

SIZE = 32
VIT = "vit_nano_patch4_32"
VIT_ARGS = {"embed_dim": 192, "depth": 6, "num_heads": 3, "patch_size": 4, "img_size": SIZE}
HF_ARGS = {
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "image_size": SIZE,
    "patch_size": 4,
    "layer_norm_eps": 1e-6,
}


@pytest.fixture(scope="module")
def x():
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def nets():
    """A ResNet and a ViT of timm, and another of each for the parts that are not taken."""
    torch.manual_seed(0)
    make = {
        "resnet": lambda: stirred(timm.create_model("resnet18", num_classes=0)),
        "vit": lambda: timm.create_model("vit_tiny_patch16_224", num_classes=0, **VIT_ARGS).eval(),
    }
    return {kind: (new(), new().state_dict()) for kind, new in make.items()}


def stirred(net):
    """Eval mode with statistics that are not 0 and 1."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    return net.eval()


def front(prefix, state):
    return {prefix + k: v for k, v in state.items()}


def moco(own, other):
    state = front("module.encoder_q.", own) | front("module.encoder_k.", other)
    state |= {"module.queue": torch.zeros(2, 3), "module.encoder_q.fc.weight": torch.zeros(3, 3)}
    return {"epoch": 3, "arch": "resnet18", "state_dict": state, "optimizer": {"state": {}}}


def moco_v3(own, other):
    state = front("module.base_encoder.", own) | front("module.momentum_encoder.", other)
    return {"epoch": 3, "arch": "vit_nano", "state_dict": state, "scaler": {}}


def dino(own, other):
    return {
        "student": front("module.backbone.", other) | {"module.head.mlp.0.weight": torch.ones(1)},
        "teacher": front("backbone.", own) | {"head.mlp.0.weight": torch.ones(1)},
        "args": argparse.Namespace(arch="vit_small", patch_size=16),
        "dino_loss": {"center": torch.zeros(1, 3)},
    }


def mae(own, _):
    decoder = {"mask_token": torch.zeros(1), "decoder_blocks.0.norm1.weight": torch.zeros(1)}
    return {"model": own | decoder, "epoch": 1, "args": argparse.Namespace(model="mae_vit_nano")}


def dinov2(own, _):
    """Blocks in two chunks, as FSDP training leaves them."""
    chunked = {}
    for key, value in own.items():
        if key.startswith("blocks."):
            number = int(key.split(".")[1])
            key = key.replace("blocks.", f"blocks.{number // 3}.", 1)
        chunked[key] = value
    chunked["mask_token"] = torch.zeros(1, 192)
    return {"teacher": front("backbone.", chunked) | {"dino_head.mlp.0.bias": torch.zeros(1)}}


def pixpro(own, other):
    state = front("module.encoder.", own) | front("module.encoder_k.", other)
    state |= {"module.projector.linear1.weight": torch.zeros(1)}
    return {"opt": argparse.Namespace(arch="resnet18"), "model": state, "epoch": 2}


def solo(own, other):
    state = front("backbone.", own) | front("momentum_backbone.", other)
    return {
        "state_dict": state | {"classifier.weight": torch.zeros(1)},
        "hyper_parameters": {"lr": 0.1},
        "pytorch-lightning_version": "1.6.4",
        "optimizer_states": [],
    }


def old_solo(own, _):
    return {"state_dict": front("encoder.", own), "hyper_parameters": {}, "callbacks": {}}


def swav(own, _):
    head = {"projection_head.0.weight": torch.zeros(1), "prototypes.weight": torch.zeros(1)}
    return front("module.", own | head)


def infomin(own, other):
    """PyContrast's: the average was saved without DDP around it."""
    return {
        "opt": argparse.Namespace(method="InfoMin"),
        "model": front("module.encoder.", own) | {"module.head_jig.fc1.0.bias": torch.zeros(1)},
        "model_ema": front("encoder.", other) | {"head.0.bias": torch.zeros(1)},
        "contrast": {"memory": torch.zeros(1)},
    }


def mmpretrain(own, _):
    return {
        "meta": {"epoch": 1},
        "state_dict": front("backbone.", own) | {"head.fc.bias": own["bn1.bias"]},
    }


def mm_vit(own, _):
    """The names of mmpretrain's VisionTransformer."""
    renames = (
        ("patch_embed.proj.", "patch_embed.projection."),
        ("blocks.", "layers."),
        (".norm1.", ".ln1."),
        (".norm2.", ".ln2."),
        ("mlp.fc1.", "ffn.layers.0.0."),
        ("mlp.fc2.", "ffn.layers.1."),
    )
    state = {}
    for key, value in own.items():
        for old, new in renames:
            key = key.replace(old, new)
        key = f"ln1.{key[5:]}" if key.startswith("norm.") else key
        state[f"backbone.{key}"] = value
    return {"meta": {}, "state_dict": state}


def vissl(own, _):
    trunk = {"trunk": front("_feature_blocks.", own), "heads": {"0.clf.0.weight": torch.ones(1)}}
    return {"classy_state_dict": {"base_model": {"model": trunk}}, "phase_idx": 1}


MADE = {
    "MoCo": ("resnet", moco, "encoder_q", ("encoder_k",), ("fc.weight", "module.queue")),
    "MoCo v3": ("vit", moco_v3, "base_encoder", ("momentum_encoder",), ()),
    "DINO": ("vit", dino, "teacher", ("student",), ("head.mlp.0.weight", "dino_loss/center")),
    "MAE": ("vit", mae, "model", (), ("mask_token", "decoder_blocks.0.norm1.weight")),
    "DINOv2": ("vit", dinov2, "teacher", (), ("mask_token", "dino_head.mlp.0.bias")),
    "PixPro or PIC": (
        "resnet",
        pixpro,
        "encoder",
        ("encoder_k",),
        ("module.projector.linear1.weight",),
    ),
    "solo-learn": ("resnet", solo, "backbone", ("momentum_backbone",), ("classifier.weight",)),
    "solo-learn, older": ("resnet", old_solo, "encoder", (), ()),
    "SwAV": ("resnet", swav, "model", (), ("projection_head.0.weight", "prototypes.weight")),
    "PyContrast": (
        "resnet",
        infomin,
        "encoder",
        ("ema",),
        ("module.head_jig.fc1.0.bias", "contrast/memory"),
    ),
    "mmpretrain": ("resnet", mmpretrain, "backbone", (), ("head.fc.bias",)),
    "mmpretrain, ViT": ("vit", mm_vit, "backbone", (), ()),
    "VISSL": (
        "resnet",
        vissl,
        "trunk",
        (),
        ("classy_state_dict/base_model/model/heads/0.clf.0.weight",),
    ),
    "plain": ("vit", lambda own, _: own, "model", (), ()),
}


@pytest.mark.parametrize("layout", MADE)
def test_documented_keys_give_the_plain_features(layout, nets, x, tmp_path):
    kind, make, part, others, unexpected = MADE[layout]
    net, other = nets[kind]
    torch.save(make(net.state_dict(), other), tmp_path / "x.pth")
    found = weights.load(tmp_path / "x.pth", image_size=SIZE)
    assert found.layout == layout.partition(",")[0]
    assert (found.part, found.others) == (part, others)
    assert found.report.unexpected == unexpected
    assert found.report.matched == len(net.state_dict())
    with torch.no_grad():
        assert torch.equal(found.backbone(x), net(x))


@pytest.mark.parametrize(
    "layout", ["MoCo", "MoCo v3", "DINO", "PixPro or PIC", "solo-learn", "PyContrast"]
)
def test_the_other_part_can_be_chosen(layout, nets, tmp_path):
    kind, make, part, (other,), _ = MADE[layout]
    net, weights_of_other = nets[kind]
    torch.save(make(net.state_dict(), weights_of_other), tmp_path / "x.pth")
    found = weights.load(tmp_path / "x.pth", image_size=SIZE, part=other)
    assert (found.part, found.others) == (other, (part,))
    own = found.backbone.net.state_dict()
    assert all(torch.equal(own[k], v) for k, v in weights_of_other.items())
    with pytest.raises(ValueError, match=f"part=none: .* choose from {part}, {other}"):
        weights.load(tmp_path / "x.pth", image_size=SIZE, part="none")


def test_timms_own_saver_with_an_average(nets, x, tmp_path):
    net, other = nets["resnet"]
    model = timm.create_model("resnet18", num_classes=0)
    model.load_state_dict(other)
    args = argparse.Namespace(model="resnet18")
    saver = CheckpointSaver(
        model, torch.optim.SGD(model.parameters(), 0.1), args, net, checkpoint_dir=str(tmp_path)
    )
    saver.save_checkpoint(0, 1.0)
    found = weights.load(tmp_path / "last.pth.tar", image_size=SIZE)
    assert (found.layout, found.part, found.others) == ("timm", "ema", ("model",))
    with torch.no_grad():
        assert torch.equal(found.backbone(x), net(x))


@pytest.mark.filterwarnings("ignore")
def test_lightnings_own_checkpoint(nets, x, tmp_path):
    class Module(pl.LightningModule):
        def __init__(self, net):
            super().__init__()
            self.net = net
            self.head = torch.nn.Linear(512, 2)

    net, _ = nets["resnet"]
    trainer = pl.Trainer(
        logger=False, enable_checkpointing=False, barebones=False, accelerator="cpu"
    )
    trainer.strategy.connect(Module(net))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    found = weights.load(tmp_path / "x.ckpt", image_size=SIZE)
    assert (found.layout, found.part) == ("Lightning", "model")
    assert found.report.unexpected == ("head.weight", "head.bias")
    with torch.no_grad():
        assert torch.equal(found.backbone(x), net(x))


def test_torchvisions_resnet(x, tmp_path):
    torch.manual_seed(0)
    net = stirred(torchvision.models.resnet18())
    torch.save(net.state_dict(), tmp_path / "x.pth")
    found = weights.load(tmp_path / "x.pth", image_size=SIZE)
    assert found.report.unexpected == ("fc.weight", "fc.bias")
    net.fc = torch.nn.Identity()
    with torch.no_grad():
        assert torch.allclose(found.backbone(x), net(x), atol=1e-5)


def test_torchvisions_vit(x, tmp_path):
    torch.manual_seed(0)
    net = torchvision.models.VisionTransformer(SIZE, 4, 6, 3, 192, 768).eval()
    torch.save(net.state_dict(), tmp_path / "x.pth")
    found = weights.load(tmp_path / "x.pth")
    assert found.config.name == VIT
    net.heads = torch.nn.Identity()
    with torch.no_grad():
        assert torch.allclose(found.backbone(x), net(x), atol=1e-5)


@pytest.mark.parametrize("kind", ["ViT", "ViTMAE", "ViTForImageClassification"])
def test_transformers_vit_folder(kind, x, tmp_path):
    torch.manual_seed(0)
    config = (transformers.ViTMAEConfig if kind == "ViTMAE" else transformers.ViTConfig)(**HF_ARGS)
    cls = {"ViT": transformers.ViTModel, "ViTMAE": transformers.ViTMAEModel}.get(
        kind, transformers.ViTForImageClassification
    )
    net = cls(config).eval()
    net.save_pretrained(tmp_path)
    pictures = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.4, 0.4, 0.4]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(pictures))
    found = weights.load(tmp_path)
    assert (found.layout, found.config.name, found.config.image_size) == ("transformers", VIT, SIZE)
    assert (found.normalize.mean, found.normalize.std) == ((0.5, 0.5, 0.5), (0.4, 0.4, 0.4))
    with torch.no_grad():
        if kind == "ViTMAE":
            net.embeddings.config.mask_ratio = 0.0
            theirs = net(x, noise=torch.arange(64.0).expand(2, -1)).last_hidden_state[:, 0]
        else:
            body = net if kind == "ViT" else net.vit
            theirs = body(x).last_hidden_state[:, 0]
        assert torch.allclose(found.backbone(x), theirs, atol=1e-5)


def test_transformers_resnet_folder(x, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}
    net = stirred(transformers.ResNetModel(transformers.ResNetConfig(embedding_size=64, **sizes)))
    net.save_pretrained(tmp_path)
    found = weights.load(tmp_path, image_size=SIZE)
    assert (found.config.name, found.report.unexpected) == ("resnet18", ())
    with torch.no_grad():
        assert torch.allclose(found.backbone(x), net(x).pooler_output.flatten(1), atol=1e-5)


def test_transformers_heads_that_differ_are_refused(tmp_path):
    config = transformers.ViTConfig(**HF_ARGS | {"num_attention_heads": 6})
    transformers.ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 6 heads and vit_nano_patch4_32 3"):
        weights.load(tmp_path)


def test_transformers_dinov2_with_registers(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
    config = transformers.Dinov2WithRegistersConfig(image_size=28, patch_size=14, **sizes)
    net = transformers.Dinov2WithRegistersModel(config).eval()
    torch.nn.init.normal_(net.embeddings.position_embeddings)
    net.save_pretrained(tmp_path)
    found = weights.load(tmp_path)
    assert found.config.name == "vit_small_patch14_reg4_dinov2"
    assert found.report.unexpected == ("mask_token",)
    x = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        assert torch.allclose(found.backbone(x), net(x).last_hidden_state[:, 0], atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("spelling", ["meta", "transformers"])
def test_dinov2_with_gated_layers(spelling, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.Dinov2Config(
        image_size=28, patch_size=14, use_swiglu_ffn=True, layerscale_value=0.5, **sizes
    )
    theirs = transformers.Dinov2Model(config).eval()
    gated = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    gated["mlp_ratio"] = 2 * 64 / 24  # both halves; 64 is 2 / 3 of 4 times the width
    net = timm.models.VisionTransformer(
        28, 14, num_classes=0, embed_dim=24, depth=2, num_heads=2, init_values=1.0, **gated
    ).eval()
    theirs.save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    (part,) = layouts.find(held).parts
    if spelling == "meta":
        old = {k.replace("mlp.fc1", "mlp.w12"): v for k, v in part.state.items()}
        old = {k.replace("mlp.fc2", "mlp.w3"): v for k, v in old.items()}
        (part,) = layouts.find({"teacher": front("backbone.", old)}).parts
    state = dict(part.state)
    del state["mask_token"]
    net.load_state_dict(state)
    x = torch.randn(2, 3, 28, 28)
    torch.testing.assert_close(net.forward_features(x), theirs(x).last_hidden_state)


def test_stages_of_swin_end_in_the_official_files_with_what_timms_start_with():
    """As in MoBY's: an online encoder and an averaged one."""
    torch.manual_seed(0)
    small = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 8}
    sizes = small | {"depths": (2, 1, 1), "num_heads": (1, 2, 4), "num_classes": 0}
    own, other = (timm.models.SwinTransformer(**sizes).eval() for _ in range(2))
    state = {"queue_ptr": torch.zeros(1, dtype=torch.long)}
    for name, net in (("encoder", own), ("encoder_k", other)):
        for i in range(2):
            end = net.layers[i + 1].downsample.state_dict()
            state |= front(f"{name}.layers.{i}.downsample.", end)
        rest = {k: v for k, v in net.state_dict().items() if "downsample" not in k}
        state |= front(f"{name}.", rest)
    first, second = layouts.find({"model": state, "epoch": 3}).parts
    assert (first.name, second.name, first.beside) == ("encoder", "encoder_k", ("queue_ptr",))
    for part, net in ((first, own), (second, other)):
        assert part.state.keys() == net.state_dict().keys()
        assert all(torch.equal(part.state[k], v) for k, v in net.state_dict().items())


def test_a_timm_hub_folder(nets, x, tmp_path):
    net, _ = nets["resnet"]
    timm.models.save_for_hf(net, tmp_path, model_config={"num_classes": 0}, safe_serialization=True)
    found = weights.load(tmp_path, image_size=SIZE)
    assert (found.layout, found.config.name) == ("timm hub", "resnet18")
    assert found.normalize.mean == tuple(net.pretrained_cfg["mean"])
    with torch.no_grad():
        assert torch.equal(found.backbone(x), net(x))


def test_a_timm_hub_folder_of_a_changed_network_is_refused(tmp_path):
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0, num_heads=6)
    described = {"architecture": "vit_tiny_patch16_224", "model_args": {"num_heads": 6}}
    described["pretrained_cfg"] = {"input_size": (3, 224, 224), "mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "config.json").write_text(json.dumps(described))
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="changes num_heads of vit_tiny_patch16_224"):
        weights.load(tmp_path)


SHAPES = ("resnet18", "resnet34", "resnet50", "resnet101", "vit_small_patch16_224")
SHAPES += ("vit_base_patch8_224", "vit_tiny_patch16_224", "vit_small_patch14_dinov2")
SHAPES += ("vit_base_patch16_224", "vit_large_patch16_224", "vit_huge_patch14_224")
SHAPES += ("beit_base_patch16_224",)


@pytest.mark.parametrize("name", SHAPES)
def test_the_architecture_is_read_from_shapes(name):
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    assert layouts.guess(state) == name


@pytest.mark.parametrize(
    "name", ["wide_resnet50_2", "resnext50_32x4d", "resnet10t", "deit3_small_patch16_224"]
)
def test_another_architecture_is_not_taken_for_a_known_one(name):
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    assert layouts.guess(state) != "resnet50"
    if name.startswith("deit3"):  # layer scale, which the plain ViT-S lacks
        assert layouts.guess(state) != "vit_small_patch16_224"


def test_caes_blocks_without_biases_of_keys_give_the_features_of_their_own_code():
    size = {"img_size": 32, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3}
    torch.manual_seed(0)
    theirs = Beit(**size, use_abs_pos_emb=True, init_values=0.5, global_pool="token").eval()
    for name, value in theirs.named_parameters():
        if name.endswith("bias") or name == "pos_embed":
            torch.nn.init.normal_(value)
    state = {f"encoder.{k}": v for k, v in theirs.state_dict().items()}
    (part,) = layouts.find({"model": state}).parts
    ours = VisionTransformer(**size, init_values=0.1).eval()
    said = ours.load_state_dict(part.state, strict=False)
    assert not said.missing_keys
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours.forward_features(x), theirs.forward_features(x))


@pytest.mark.parametrize(
    ("other", "beside"),
    [
        ("alignment_encoder", "regresser.norm.weight"),
        ("teacher", "pretext_neck.norm.weight"),  # of the first release
    ],
)
def test_of_caes_files_the_encoder_is_taken_not_its_copy_of_the_step_before(other, beside):
    net = VisionTransformer(32, 16, embed_dim=48, depth=1, num_heads=3).state_dict()
    state = {f"{name}.{k}": v for name in (other, "encoder") for k, v in net.items()}
    found = layouts.find({"model": state | {beside: torch.zeros(48)}})
    assert [p.name for p in found.parts] == ["encoder", other]
    assert set(found.parts[0].state) == set(net)


def test_one_table_of_distances_for_all_blocks_is_beits_pretrained_form():
    with torch.device("meta"):
        net = timm.create_model(
            "beit_base_patch16_224", use_rel_pos_bias=False, use_shared_rel_pos_bias=True
        )
    assert layouts.guess(net.state_dict()) == "beit_base_shared_patch16_224"


def test_a_vit_b16_with_layer_scale_is_caes():
    with torch.device("meta"):
        state = timm.create_model("vit_base_patch16_224", init_values=0.1).state_dict()
    assert layouts.guess(state) == "vit_base_layerscale_patch16_224"


def test_moco_v3s_small_vit_has_twelve_heads(tmp_path):
    torch.manual_seed(0)
    net = timm.create_model("vit_small_patch16_224", num_classes=0, num_heads=12).eval()
    state = front("module.base_encoder.", net.state_dict())
    torch.save({"arch": "vit_small", "state_dict": state}, tmp_path / "x.pth.tar")
    found = weights.load(tmp_path / "x.pth.tar")
    assert found.config.name == "vit_small_heads12_patch16_224"
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(found.backbone(x), net(x))
    with pytest.raises(ValueError, match="MoCo v3's has 12 heads"):
        weights.load(tmp_path / "x.pth.tar", backbone="vit_small_patch16_224")
