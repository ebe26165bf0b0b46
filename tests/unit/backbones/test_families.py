"""Backbones with layers of other papers in timm's ResNets."""

from dataclasses import replace

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from toys import ConvNet, noise, train

from saccade import backbones, weights
from saccade.attention import LambdaLayer, LocalRelation
from saccade.backbones.presets import PRESETS
from saccade.backbones.timm_adapter import StagedNet
from saccade.backbones.timm_state import load_timm_state, timm_state
from saccade.core import Mechanism
from saccade.exports import hf, onnx, state_dict, torchvision
from saccade.exports import timm as timm_export
from saccade.methods.simclr import SimCLR
from saccade.recipe import BackboneConfig, Normalize

OWN = [n for n in PRESETS if backbones.family(n)]
SMALL = [n for n in OWN if PRESETS[n].image_size == 32]
LARGE = [n for n in OWN if n not in SMALL]


def encoder(name, size=32, **settings):
    torch.manual_seed(0)
    made = backbones.create(BackboneConfig(name=name, image_size=size, **settings))
    assert isinstance(made, StagedNet)
    return made


def parameters(name):
    """With the classifier of 1000 classes that papers count."""
    made = outline(name)
    return sum(p.numel() for p in made.parameters()) + (made.dim + 1) * 1000


def macs(made, size):
    """Multiplications of convolutions and matrix products, in G, with the classifier of papers."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        made(torch.zeros(1, 3, size, size))
    return (counter.get_total_flops() / 2 + made.dim * 1000) / 1e9


def test_every_family_has_a_network_for_a_cpu():
    assert {backbones.family(n) for n in SMALL} == {backbones.family(n) for n in LARGE}
    families = {"nl_resnet", "lr_net", "lambda_resnet", "simclr_resnet"}
    assert {backbones.family(n) for n in OWN} == families


# The last norm of each branch starts at zero, and so do the blocks' own: three steps reach all.
@pytest.mark.parametrize("name", SMALL)
def test_simclr_trains_all_of_it(name):
    method = SimCLR(SimCLR.Config(hidden=16, dim=8), encoder(name))
    before = {k: v.clone() for k, v in method.named_parameters()}
    losses = train(method, [noise(i, b=4) for i in range(3)])
    assert all(0 < loss < 10 for loss in losses)
    still = [k for k, v in method.named_parameters() if torch.equal(v, before[k])]
    # no gradient but for rounding: whitening, and the norm behind a lambda layer, take them out
    idle = ("dnl.query.bias", "dnl.key.bias", "norm_v.weight")
    assert [k for k in still if not k.endswith(idle)] == []


@pytest.mark.parametrize("name", SMALL)
def test_it_saves_and_loads(name, tmp_path):
    cfg = BackboneConfig(name=name, image_size=32, channels=5)
    made = encoder(name, channels=5).eval()
    weights.save_backbone(tmp_path, made, cfg, Normalize(mean=(0.5,) * 5, std=(0.2,) * 5), {})
    found = weights.load(tmp_path)
    x = torch.randn(2, 5, 32, 32)
    assert (found.config, found.report.missing, found.report.unexpected) == (cfg, (), ())
    with torch.no_grad():
        assert torch.equal(found.backbone(x), made(x))


@pytest.mark.parametrize("name", SMALL)
def test_stages_are_those_of_a_resnet(name):
    made, x = encoder(name).eval(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        y = made.stem(x)
        for i, (width, stride) in enumerate(zip(made.widths, made.strides, strict=True)):
            y = made.stage(y, i)
            assert y.shape == (1, width, 32 // stride, 32 // stride)
        torch.testing.assert_close(y, made.features(x))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("stem", ["small", "paper"])
def test_drop_path_and_both_stems(name, stem):
    made = encoder(name, drop_path=0.5, stem=stem)
    drops = [m for m in made.modules() if type(m).__name__ == "DropPath"]
    assert drops
    with torch.no_grad():
        assert made(torch.randn(2, 3, 64, 64)).shape == (2, made.dim)


@pytest.mark.parametrize("export", [timm_export, torchvision, hf])
@pytest.mark.parametrize("name", OWN)
def test_libraries_that_lack_the_layers_are_refused_in_one_line(export, name, tmp_path):
    cfg = BackboneConfig(name=name, stem="paper")
    with pytest.raises(ValueError, match=f"{name}.*use format state-dict or onnx") as error:
        export.write(ConvNet(), cfg, Normalize(), tmp_path / "x")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", SMALL)
def test_a_state_dict_takes_it_home(name, tmp_path):
    made, out = encoder(name).eval(), tmp_path / "x.safetensors"
    state_dict.write(made, BackboneConfig(name=name, image_size=32), Normalize(), out)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(state_dict.read_back(out)(x)["vector"], made(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in SMALL if n != "lr_net14_w32"])
def test_onnx_takes_it_home(name, tmp_path, monkeypatch):
    if "kernels" in PRESETS[name].layers:  # each offset of a window is a few nodes: 12, not 148
        few = PRESETS[name].layers | {"kernels": (3, 1, 1, 1)}
        monkeypatch.setitem(PRESETS, name, replace(PRESETS[name], layers=few))
    made, out = encoder(name).eval(), tmp_path / "x.onnx"
    onnx.write(made, BackboneConfig(name=name, image_size=32), Normalize(), out)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        theirs = torch.as_tensor(onnx.read_back(out)(x)["vector"])
        torch.testing.assert_close(theirs, made(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["nl_resnet10_w32", "gc_resnet10_w32"])
def test_the_blocks_leave_a_trained_resnet_as_it_is(name):
    trained, made = encoder("resnet10_w32").eval(), encoder(name).eval()
    nn.init.normal_(trained.net.layer4[0].bn2.weight)
    report = load_timm_state(made, timm_state(trained))
    assert report.missing
    assert set(report.missing) == made.added
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(made(x), trained(x))


def test_half_of_the_blocks_is_refused():
    made = encoder("nl_resnet10_w32")
    state = timm_state(made)
    del state["layer2.0.act2.nl.g.weight"]
    with pytest.raises(ValueError, match=r"no layer2\.0\.act2\.nl\.g\.weight"):
        load_timm_state(made, state)


def test_replaced_layers_do_not_come_from_a_plain_resnet():
    with pytest.raises(ValueError, match=r"no layer3\.0\.conv2"):
        load_timm_state(encoder("lambda_resnet10_w32"), timm_state(encoder("resnet10_w32")))


def outline(name):
    """The network without numbers."""
    with torch.device("meta"):
        return encoder(name, 224)


def inserted(name, key):
    return [k.removesuffix(key) for k in timm_state(outline(name)) if k.endswith(key)]


def test_blocks_stand_where_the_papers_put_them():
    assert inserted("nl_resnet50", ".act3.nl.g.weight") == [
        "layer2.1",
        "layer2.3",
        "layer3.1",
        "layer3.3",
        "layer3.5",
    ]
    units = [f"layer{i}.{j}" for i, j in ((2, 1), (2, 3), (3, 6), (3, 13), (3, 20))]
    assert inserted("nl_resnet101", ".act3.nl.g.weight") == units
    assert inserted("dnl_resnet50", ".act3.dnl.gamma") == ["layer3.4"]
    assert len(inserted("gc_resnet50", ".se.mask.weight")) == 4 + 6 + 3


def test_non_local_acts_behind_the_relu_and_disentangled_before_it():
    assert list(dict(outline("nl_resnet50").net.layer3[1].act3.named_children())) == ["act", "nl"]
    assert list(dict(outline("dnl_resnet50").net.layer3[4].act3.named_children())) == ["dnl", "act"]


@pytest.mark.parametrize("mechanism", ["nl", "dnl", "gc"])
@torch.no_grad()
def test_a_unit_adds_a_constant_of_its_block_where_the_official_code_does(mechanism):
    """Behind the ReLU, between sum and ReLU, in front of the sum: seen by a constant below 0."""
    unit = encoder(f"{mechanism}_resnet10_w32").eval().net.layer3[0]
    block = next(m for m in unit.modules() if isinstance(m, Mechanism))
    block.register_forward_hook(lambda module, given, made: given[0] - 1)
    x = torch.randn(1, 64, 8, 8)
    branch = unit.bn2(unit.conv2(unit.aa(unit.act1(unit.drop_block(unit.bn1(unit.conv1(x)))))))
    total = branch + unit.downsample(x)
    want = total.relu() - 1 if mechanism == "nl" else (total - 1).relu()
    torch.testing.assert_close(unit(x), want)
    (seen,) = captured(block, unit, x)
    torch.testing.assert_close(seen, {"nl": total.relu(), "dnl": total, "gc": branch}[mechanism])


def captured(block, unit, x):
    """What goes into a block."""
    found = []
    with block.register_forward_pre_hook(lambda module, given: found.append(given[0].clone())):
        unit(x)
    return found


def test_non_local_blocks_cost_what_their_shapes_say():
    plain = sum(p.numel() for p in timm.create_model("resnet50").parameters())
    block = {c: 3 * (c + 1) * c // 2 + (c // 2 + 1) * c + 2 * c for c in (512, 1024)}
    assert parameters("nl_resnet50") == plain + 2 * block[512] + 3 * block[1024]


def test_lambda_resnet50_has_the_published_size():
    biases = 16 * 16  # one for each key channel of each layer in the public count, none here
    assert parameters("lambda_resnet50") == 14_995_848 - biases
    assert macs(encoder("lambda_resnet50", 224).eval(), 224) == pytest.approx(6.576, rel=0.02)


def test_lambda_layers_that_shrink_the_map_average_three_by_three_behind():
    net = outline("lambda_resnet50").net
    for stage in (net.layer2, net.layer3, net.layer4):
        layer, pool = stage[0].conv2
        assert isinstance(layer, LambdaLayer)
        assert (pool.kernel_size, pool.stride, pool.padding) == (3, 2, 1)
        assert all(isinstance(unit.conv2, LambdaLayer) for unit in stage[1:])


@pytest.mark.parametrize(
    ("depth", "blocks", "third"),
    [
        (50, (3, 4, 6, 3), [3]),
        (101, (3, 4, 23, 3), [6, 12, 18]),
        (152, (3, 8, 36, 3), [5, 10, 15, 20, 25, 30]),
    ],
)
def test_a_hybrid_has_lambdas_in_the_last_stages_and_gates_elsewhere(depth, blocks, third):
    net = outline(f"lambda_resnetrs{depth}").net
    assert tuple(len(net.get_submodule(f"layer{i}")) for i in range(1, 5)) == blocks
    kinds = {
        f"{i}.{j}": any(isinstance(m, LambdaLayer) for m in unit.modules())
        for i in range(1, 5)
        for j, unit in enumerate(net.get_submodule(f"layer{i}"))
    }
    assert [k for k, v in kinds.items() if v] == [f"3.{j}" for j in third] + ["4.0", "4.1", "4.2"]
    for place, is_lambda in kinds.items():
        assert (net.get_submodule(f"layer{place}").se is None) == is_lambda


@pytest.mark.parametrize(
    ("name", "millions", "gmacs"), [("lr_net26", 14.7, 2.6), ("lr_net50", 23.3, 4.3)]
)
def test_lr_nets_are_near_the_published_size(name, millions, gmacs):
    assert parameters(name) / 1e6 == pytest.approx(millions, rel=0.007)
    layers = {"lr_net26": (2, 2, 2, 2), "lr_net50": (3, 4, 6, 3)}[name]
    sums = 49 * 64 * 112**2  # the stem; the sums over windows are no matrix products
    for stage, depth in enumerate(layers):
        sums += depth * 49 * 100 * 2**stage * (56 // 2**stage) ** 2
    made = encoder(name, 224).eval()
    small, larger = macs(made, 32), macs(made, 64)  # all but the prior grows with the positions
    whole = small + (larger - small) * (7**2 - 1) / (2**2 - 1)
    assert whole + sums / 1e9 == pytest.approx(gmacs, rel=0.12)


def test_the_deepest_hybrids_have_every_eighth_or_tenth_unit():
    found = {n: PRESETS[f"lambda_resnetrs{n}"].layers["units"][2:] for n in (270, 350, 420)}
    assert found[270] == ((8, 16, 24, 32, 40, 48), (0, 1, 2, 3))
    assert found[350] == ((10, 20, 30, 40, 50, 60), (0, 1, 2, 3))
    assert found[420] == ((10, 20, 30, 40, 50, 60, 70, 80), (0, 1, 2, 3))


def test_no_spatial_convolution_is_left_in_an_lr_net():
    net = outline("lr_net26").net
    assert {m.kernel_size for m in net.modules() if isinstance(m, nn.Conv2d)} == {(1, 1)}
    assert sum(isinstance(m, LocalRelation) for m in net.modules()) == 1 + 8
