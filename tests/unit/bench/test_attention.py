import json

import pytest
import torch
from PIL import Image

from saccade.attention import NonLocal
from saccade.attention.feature_pyramid_transformer import CrossAttention
from saccade.bench.attention import ARMS, SelfAttention, growth, peers, plot, run_attention
from saccade.bench.memory import Living, peak
from saccade.commands import run_bench_attention


@pytest.fixture(scope="module")
def found():
    return run_attention(sizes=(4, 8), channels=16, batch_size=1, rounds=1)


def test_every_mechanism_is_measured_at_every_size(found):
    read = json.loads(json.dumps(found))
    assert read["arms"].keys() == ARMS.keys()
    for arm in read["arms"].values():
        assert [row["size"] for row in arm["rows"]] == [4, 8]
        assert all(row["seconds"]["median"] > 0 and row["bytes"] > 0 for row in arm["rows"])


def test_a_picture_shows_all_curves(found, tmp_path):
    plot(found, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert len(picture.convert("RGB").getcolors(10**6)) > len(ARMS)


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # lambda-networks
def test_peers_have_our_weights_and_stand_beside_their_twins():
    """Weights, but for the bias of their lambda convolutions."""
    count = lambda layer: sum(p.numel() for p in layer.parameters())  # noqa: E731
    for name, (own, make) in peers().items():
        bias = 16 if "23x23" in name else 0
        assert count(make(32, 6)) == count(ARMS[own](32, 6)) + bias
    names = ("global context", "lambda global")
    found = run_attention(
        sizes=(4, 6), channels=16, batch_size=1, rounds=1, names=names, beside=True
    )
    assert set(found["beside"]) == {
        "global context / timm global context",
        "lambda global / timm lambda global",
        "lambda global / lambda-networks global",
    }
    assert all(len(v) == 2 and min(v) > 0 for v in found["beside"].values())
    assert found["arms"].keys() > set(names)


def test_growth_is_the_exponent_in_positions():
    rows = [
        {"size": 4, "seconds": {"median": 1.0}, "bytes": 10},
        {"size": 8, "seconds": {"median": 4.0}, "bytes": 160},
    ]
    assert growth(rows) == {"time": pytest.approx(1), "memory": pytest.approx(2)}


def test_living_counts_what_is_alive_and_no_view_twice():
    with Living() as living:
        x = torch.zeros(100)  # 400 bytes
        y = x.view(10, 10) + 1  # 400 more
        del y
        z = x * 2  # in place of y
        x.add_(1)
    assert (living.now, living.most) == (800, 800)
    assert z.sum() == 0


def test_the_table_of_all_pairs_is_in_the_plain_form_and_the_global_lambdas_alone():
    table = 24**4 * 4  # bytes
    assert {name for name in ARMS if peak_of(name, 24) > table} == {
        "self-attention",
        "lambda global",
    }


@pytest.mark.parametrize("settings", [{}, {"distance": True}], ids=str)
def test_a_pyramids_attention_has_no_table_of_all_pairs(settings):
    layer = CrossAttention(16, 2, **settings)
    x = torch.randn(1, 16, 32, 32, requires_grad=True)
    assert peak(lambda: layer(x, x).sum().backward()) < 32**4 * 4


@pytest.mark.parametrize("pairing", ["gaussian", "embedded_gaussian", "dot_product"])
def test_non_local_blocks_have_none_but_for_pairs_that_are_concatenated(pairing):
    layer = NonLocal(16, pairing=pairing)
    x = torch.randn(1, 16, 32, 32, requires_grad=True)
    assert peak(lambda: layer(x).sum().backward()) < 32**4 * 4


def peak_of(name, side):
    layer = ARMS[name](16, side)
    x = torch.randn(1, 16, side, side, requires_grad=True)
    return peak(lambda: layer(x).sum().backward())


def test_both_forms_of_self_attention_agree():
    plain, fused = SelfAttention(16, fused=False), SelfAttention(16, fused=True)
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(2, 16, 4, 3)
    torch.testing.assert_close(plain(x), fused(x))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"sizes": (8, 4)}, "sizes"), ({"sizes": (8,)}, "sizes"), ({"channels": 20}, "channels: 20")],
)
def test_a_wrong_setting_is_named(settings, message):
    given = {"sizes": (4, 8), "channels": 16, "batch_size": 1, "rounds": 1} | settings
    with pytest.raises(ValueError, match=f"setting {message}"):
        run_attention(**given)


def test_the_command_prints_json_alone_and_names_sizes_that_are_no_numbers(capsys):
    run_bench_attention("4,8", channels=8, batch_size=1, rounds=1, plot="", json_out="-")
    assert json.loads(capsys.readouterr().out)["settings"]["sizes"] == [4, 8]
    with pytest.raises(ValueError, match="setting sizes: '4;8'"):
        run_bench_attention("4;8", channels=8, batch_size=1, rounds=1, plot="", json_out="-")
