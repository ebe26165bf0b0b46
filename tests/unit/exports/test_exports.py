"""Every export is read back by the library it is for."""

import json

import onnx
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from transformers import ViTImageProcessor, ViTModel

from saccade import exports
from saccade.backbones import create
from saccade.backbones.timm_state import Report, load_timm_state
from saccade.errors import RunError
from saccade.exports import export, proof_path
from saccade.exports import onnx as onnx_format
from saccade.recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize
from saccade.weights import Loaded

CIFAR = Normalize(mean=CIFAR_MEAN, std=CIFAR_STD)


def loaded(name, size, **settings):
    torch.manual_seed(0)
    cfg = BackboneConfig(name=name, image_size=size, **settings)
    backbone = create(cfg).eval()
    for module in backbone.modules():  # weights as after training, not all zeros and ones
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.LayerNorm):
            torch.nn.init.normal_(module.weight, 1, 0.2)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    return Loaded(backbone=backbone, config=cfg, normalize=CIFAR, source="", report=Report())


def pictures(size, n=3):
    """Soft blobs of color in the range of normalized photographs."""
    torch.manual_seed(1)
    small = torch.rand(n, 3, 5, 5)
    x = torch.nn.functional.interpolate(small, size=size, mode="bicubic").clamp(0, 1)
    mean, std = torch.tensor(CIFAR_MEAN), torch.tensor(CIFAR_STD)
    return (x - mean[:, None, None]) / std[:, None, None]


RESNET = loaded("resnet18", 64, stem="paper")
TINY = loaded("vit_nano_patch8_64", 32)


SLOW = [pytest.mark.slow]  # torch.onnx takes seconds


@pytest.mark.parametrize(
    ("format", "cfg"),
    [
        pytest.param("timm", RESNET, id="timm-resnet18"),
        pytest.param("timm", TINY, id="timm-vit"),
        pytest.param("state-dict", RESNET, id="state-dict-resnet18"),
        pytest.param("state-dict", TINY, id="state-dict-vit"),
        pytest.param("onnx", TINY, id="onnx-vit", marks=SLOW),
    ],
)
def test_each_format_is_proved_and_the_proof_stored(tmp_path, format, cfg):
    out = tmp_path / {"timm": "x", "state-dict": "x.safetensors", "onnx": "x.onnx"}[format]
    proof = export(cfg, format, out, pictures(cfg.config.image_size))
    assert proof.max_difference <= (1e-4 if format == "onnx" else 1e-5)
    assert proof.largest > 0.1
    assert proof.compared == (("vector", "tokens") if cfg is TINY else ("vector",))
    stored = json.loads(proof_path(out).read_text())
    assert stored["max_difference"] == proof.max_difference
    assert stored["pictures"] == 3


def test_timm_makes_the_model_from_the_folder(tmp_path):
    x = pictures(32)
    export(TINY, "timm", tmp_path, x)
    net = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(net(x), TINY.backbone(x))
    settings = timm.data.resolve_model_data_config(net)
    assert tuple(settings["input_size"]) == (3, 32, 32)
    assert tuple(settings["mean"]) == CIFAR_MEAN


def test_torchvision_loads_the_keys_as_its_own(tmp_path):
    x = pictures(64)
    out = tmp_path / "x.safetensors"
    proof = export(RESNET, "torchvision", out, x)
    net = torchvision.models.resnet18()
    left = net.load_state_dict(safetensors.torch.load_file(out), strict=False)
    assert left.unexpected_keys == []
    assert left.missing_keys == ["fc.weight", "fc.bias"]
    net.fc = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(x), RESNET.backbone(x), atol=1e-5, rtol=0)
    assert proof.max_difference <= 1e-5


@pytest.mark.parametrize("name", ["vit_nano_patch8_64", "deit3_small_patch16_224"])
def test_transformers_reads_a_vit(tmp_path, name):
    cfg = TINY if name == TINY.config.name else loaded(name, 32)
    if name.startswith("deit3"):  # its layer scale is a part transformers' ViT lacks
        with pytest.raises(ValueError, match="ls1"):
            export(cfg, "hf", tmp_path, pictures(32))
        return
    x = pictures(32)
    proof = export(cfg, "hf", tmp_path, x)
    assert proof.compared == ("vector", "tokens")
    assert proof.max_difference <= 1e-5
    net, info = ViTModel.from_pretrained(
        tmp_path, add_pooling_layer=False, output_loading_info=True
    )
    assert [
        k for kind in ("missing", "unexpected", "mismatched") for k in info[f"{kind}_keys"]
    ] == []
    with torch.no_grad():
        theirs = net.eval()(x).last_hidden_state[:, 0]
        torch.testing.assert_close(theirs, cfg.backbone(x), atol=1e-5, rtol=0)


def test_transformers_positions_where_cls_has_none(tmp_path):
    torch.manual_seed(0)
    cfg = BackboneConfig(name="vit_nano_patch8_64", image_size=32)
    net = timm.create_model(
        "vit_tiny_patch16_224",
        num_classes=0,
        img_size=32,
        patch_size=8,
        depth=2,
        no_embed_class=True,
        dynamic_img_size=True,
    )
    from saccade.backbones.timm_adapter import ViT

    found = Loaded(backbone=ViT(net, cfg), config=cfg, normalize=CIFAR, source="", report=Report())
    assert export(found, "hf", tmp_path, pictures(32)).max_difference <= 1e-5


def test_transformers_processor_prepares_pictures_as_we_do(tmp_path):
    export(TINY, "hf", tmp_path, pictures(32))
    processor = ViTImageProcessor.from_pretrained(tmp_path)
    raw = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    made = torch.as_tensor(processor(raw, return_tensors="pt")["pixel_values"][0])
    mean, std = torch.tensor(CIFAR_MEAN)[:, None, None], torch.tensor(CIFAR_STD)[:, None, None]
    torch.testing.assert_close(made, (raw / 255 - mean) / std, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_onnx_takes_any_number_of_pictures(tmp_path):
    out = tmp_path / "x.onnx"
    proof = export(loaded("resnet10_w16", 32), "onnx", out, pictures(32))
    assert proof.max_difference <= 1e-4
    onnx.checker.check_model(str(out))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.onnx", "x.onnx.export.json"]
    read = onnx_format.read_back(out)
    assert [read(pictures(32, n))["vector"].shape for n in (1, 5)] == [(1, 128), (5, 128)]


def test_a_wrong_export_is_not_vouched_for(tmp_path, monkeypatch):
    from saccade.exports import state_dict

    right = state_dict.read_back

    def off(out):
        return lambda x: {k: v + 2e-5 for k, v in right(out)(x).items()}

    monkeypatch.setattr(state_dict, "read_back", off)
    out = tmp_path / "x.safetensors"
    with pytest.raises(RunError, match=r"2\.\de-05 away from ours"):
        export(TINY, "state-dict", out, pictures(32))
    assert not proof_path(out).exists()
    monkeypatch.setattr(
        state_dict, "read_back", lambda out: lambda x: {"vector": x.new_tensor(torch.nan)}
    )
    with pytest.raises(RunError, match="nan"):
        export(TINY, "state-dict", out, pictures(32))


def test_the_exported_backbone_stays_as_it_was(tmp_path):
    cfg = loaded("resnet10_w16", 32)
    cfg.backbone.train()
    before = {k: v.clone() for k, v in cfg.backbone.state_dict().items()}
    export(cfg, "state-dict", tmp_path / "x.safetensors", pictures(32))
    assert cfg.backbone.training
    assert all(torch.equal(v, before[k]) for k, v in cfg.backbone.state_dict().items())
    copy = create(cfg.config)
    load_timm_state(copy, safetensors.torch.load_file(tmp_path / "x.safetensors"))


@pytest.mark.parametrize(
    ("name", "settings", "format", "message"),
    [
        ("resnet10_w16", {}, "timm", "no ResNet with the small stem; use format state-dict"),
        ("resnet18", {}, "torchvision", "no ResNet with the small stem"),
        ("resnet10_w16", {"stem": "paper"}, "torchvision", "has no resnet10_w16"),
        ("resnet18", {"stem": "paper", "channels": 1}, "torchvision", "for 1 channels"),
        ("resnet10_w16", {}, "hf", "hf takes plain ViTs"),
        ("vit_pwee_patch16_reg1_gap_256", {}, "hf", "transformers' ViT does not"),
        ("resnet10_w16", {}, "tmim", "unknown format 'tmim'; did you mean timm"),
        ("resnet10_w16", {}, "state-dict", "name it x.safetensors"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_with_the_remedy(
    tmp_path, name, settings, format, message
):
    with pytest.raises(ValueError, match=message):
        export(loaded(name, 32, **settings), format, tmp_path / "x", pictures(32))
    assert not (tmp_path / "x").exists()


def test_every_format_has_a_file():
    assert set(exports.FORMATS) == {"timm", "torchvision", "hf", "state-dict", "onnx"}
