import argparse
import json
import os

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from saccade import backbones, weights
from saccade.backbones.timm_state import timm_state
from saccade.recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize

CFG = BackboneConfig(name="resnet10_w16", image_size=32)
VIT = BackboneConfig(name="vit_nano_patch8_64", image_size=32)
CIFAR = Normalize(mean=CIFAR_MEAN, std=CIFAR_STD)


def built(cfg=CFG):
    torch.manual_seed(0)
    return backbones.create(cfg).eval()


def saved(folder, cfg=CFG):
    backbone = built(cfg)
    weights.save_backbone(folder / "backbone", backbone, cfg, CIFAR, {"method": "simclr"})
    return backbone


def same(a, b):
    a, b = timm_state(a), timm_state(b)
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("cfg", [CFG, VIT], ids=lambda c: c.name)
@pytest.mark.parametrize("inside", ["", "backbone"])
def test_a_run_folder_comes_back_whole(tmp_path, cfg, inside):
    backbone = saved(tmp_path, cfg)
    found = weights.load(str(tmp_path / inside))
    assert same(found.backbone, backbone)
    assert (found.config, found.normalize) == (cfg, CIFAR)
    assert not found.backbone.training
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(found.backbone(x), backbone(x))


def test_a_run_folder_is_timms_hub_layout(tmp_path):
    backbone = saved(tmp_path, VIT)
    net = timm.create_model(f"local-dir:{tmp_path / 'backbone'}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(net(x), backbone(x))
    described = json.loads((tmp_path / "backbone" / "config.json").read_text())
    assert described["num_features"] == 192
    assert described["pretrained_cfg"]["mean"] == list(CIFAR_MEAN)
    assert described["extra"] == {"method": "simclr"}


def test_another_picture_size_keeps_the_stem_and_resizes_the_table(tmp_path):
    saved(tmp_path, CFG)
    found = weights.load(str(tmp_path), image_size=96)
    assert (found.config.stem, found.backbone.image_size) == ("small", 96)
    saved(tmp_path, VIT)
    found = weights.load(str(tmp_path), image_size=64)
    assert found.report.resized == ("pos_embed",)
    assert found.backbone.grid == (8, 8)


def test_a_save_cut_short_leaves_the_old_file(tmp_path, monkeypatch):
    backbone = saved(tmp_path)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        weights.save_backbone(tmp_path / "backbone", built(VIT), VIT, CIFAR, {})
    monkeypatch.undo()
    assert same(weights.load(str(tmp_path)).backbone, backbone)


LAYOUTS = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "args": argparse.Namespace(lr=1)},
    "moco": lambda s: {"state_dict": {f"module.encoder_q.{k}": v for k, v in s.items()}},
    "lightning": lambda s: {"state_dict": {f"backbone.{k}": v for k, v in s.items()}},
    "dino": lambda s: {"model": {f"module.backbone.{k}": v for k, v in s.items()}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpoint_files_of_common_layouts(tmp_path, layout):
    backbone = built()
    file = tmp_path / "x.pth"
    torch.save(LAYOUTS[layout](timm_state(backbone)), file)
    found = weights.load(str(file), backbone="resnet10_w16")
    assert same(found.backbone, backbone)
    assert found.config.stem == "small"  # seen in the first convolution
    assert found.report.unexpected == ()


def test_every_other_key_of_a_checkpoint_is_reported(tmp_path):
    state = {f"module.encoder_q.{k}": v for k, v in timm_state(built()).items()}
    state |= {"module.encoder_q.fc.weight": torch.zeros(1), "module.queue": torch.zeros(1)}
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    report = weights.load(str(tmp_path / "x.pth"), backbone="resnet10_w16").report
    assert report.unexpected == ("fc.weight", "module.queue")


def test_a_safetensors_file_with_its_description_needs_no_name(tmp_path):
    backbone = built(VIT)
    file = tmp_path / "x.safetensors"
    notes = json.dumps(weights.describe(VIT, CIFAR))
    weights.write_state(file, timm_state(backbone), saccade=notes)
    found = weights.load(file)
    assert same(found.backbone, backbone)
    assert (found.config, found.normalize) == (VIT, CIFAR)


def test_a_plain_vit_of_another_size_is_resized(tmp_path):
    save_file(timm_state(built(VIT)), tmp_path / "x.safetensors")
    found = weights.load(str(tmp_path / "x.safetensors"), backbone=VIT.name)  # native 64
    assert found.report.resized == ("pos_embed",)


def test_random_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a = weights.load("random:resnet10_w16")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert same(weights.load("random:resnet10_w16").backbone, a.backbone)
    assert not same(weights.load("random:resnet10_w16", seed=1).backbone, a.backbone)
    assert (a.config.image_size, a.source) == (32, "random:resnet10_w16")


class Code:
    def __reduce__(self):
        return (os.system, ("false",))


def _broken(kind, path):
    if kind == "code":
        torch.save({"x": Code()}, path)
    elif kind == "module":  # as lemniscate's files hold their memory bank
        state = {f"module.{k}": v for k, v in timm_state(built()).items()}
        torch.save({"state_dict": state, "lemniscate": torch.nn.Linear(2, 2)}, path)
    elif kind == "cut":
        torch.save(timm_state(built()), path)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "text":
        path.write_text("hello world")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "layout":
        torch.save({"optimizer": {"lr": 1}}, path)
    elif kind == "other":
        torch.save({"a.weight": torch.zeros(1)}, path)
    elif kind == "list":
        torch.save([1, 2], path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("code", r"pickled code \(posix\.system\), which is never run"),
        ("module", r"pickled code \(torch\.nn\..*Linear\), which is never run"),
        ("cut", "cut short or no checkpoint"),
        ("text", "cut short or no checkpoint|pickled code"),
        ("empty", "cut short or no checkpoint"),
        ("layout", "has no state dict"),
        ("list", "has no state dict"),
        ("other", r"holds no ResNet.*\(its first key is a\.weight\)"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_bad_file_gives_one_clear_line(tmp_path, kind, message, suffix):
    file = tmp_path / f"x.{suffix}"
    _broken(kind, file)
    if suffix == "safetensors":
        message = "cut short or no checkpoint"
    with pytest.raises(ValueError, match=message) as error:
        weights.load(str(file), backbone="resnet10_w16")
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "'nowhere' is not there; give a run folder"),
        ("resnet50", "such as timm:resnet50 or random:resnet50"),
        ("random:resnet5", "did you mean resnet50"),
        ("timm:resnet10_w16", "try random:resnet10_w16"),
    ],
)
def test_a_wrong_name_says_what_is_accepted(name, message):
    with pytest.raises(ValueError, match=message):
        weights.load(name)


def test_a_failing_download_is_one_line(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"timm:resnet18 cannot be had .* check the") as error:
        weights.load("timm:resnet18")
    assert "\n" not in str(error.value)


def test_folders_and_files_without_a_description_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no backbone/config\.json"):
        weights.load(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is not one saccade wrote"):
        weights.load(str(tmp_path))
    save_file(timm_state(built()), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="give backbone=NAME"):
        weights.load(str(tmp_path / "x.safetensors"))
    saved(tmp_path)
    (tmp_path / "backbone" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is not there"):
        weights.load(str(tmp_path))


def test_other_channels_than_trained_are_refused(tmp_path):
    saved(tmp_path)
    with pytest.raises(ValueError, match="channels=1"):
        weights.load(str(tmp_path), channels=1)
    assert weights.load(str(tmp_path), channels=3).config.channels == 3


def test_a_model_of_the_hub_is_read_like_its_folder(tmp_path, monkeypatch):
    """What the hub's own library would leave in its cache: a folder of the files asked for."""
    import huggingface_hub

    kept = weights.load("random:resnet10_w16", seed=5)
    weights.save_backbone(tmp_path, kept.backbone, kept.config, kept.normalize, {})
    asked = {}

    def snapshot(repo, *, revision, allow_patterns):
        asked.update(repo=repo, revision=revision, files=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    found = weights.load("hf:somebody/net@v2")
    assert (asked["repo"], asked["revision"]) == ("somebody/net", "v2")
    assert {"config.json", "model.safetensors"} <= set(asked["files"])
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(found.backbone(x), kept.backbone(x))


@pytest.mark.parametrize("name", ["hf:nobody/nothing", "hf:not a name!"])
def test_a_hub_that_cannot_be_reached_is_one_line(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="cannot be had"):
        weights.load(name)
