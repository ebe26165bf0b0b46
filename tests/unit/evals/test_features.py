from dataclasses import replace

import numpy as np
import pytest
import torch

from saccade import backbones
from saccade.evals.features import (
    Data,
    Preprocess,
    cache_key,
    extract,
    preprocess_for,
    translate,
)
from saccade.recipe import BackboneConfig, Normalize

WHOLE = Preprocess(size=16, resize=16, normalize=Normalize())


def test_features_are_the_networks_answer_in_eval_mode(net, toy):
    source = toy(7)
    found = extract(net, source, WHOLE, batch_size=3)
    mean, std = (torch.tensor(v)[:, None, None] for v in (Normalize().mean, Normalize().std))
    x = torch.stack([(source.read(i) / 255 - mean) / std for i in range(7)])
    assert torch.allclose(found.x, net.eval()(x), atol=1e-5)
    assert found.y.tolist() == source.labels.tolist()
    assert not found.x.requires_grad


def test_the_network_is_left_as_it_was(net, toy):
    net.train()
    net.body[1].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    extract(net, toy(5), WHOLE)
    assert (net.training, net.body[0].training, net.body[1].training) == (True, True, False)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_features_can_train_a_classifier(net, toy):
    x = extract(net, toy(4), WHOLE).x
    layer = torch.nn.Linear(8, 1)
    layer(x).sum().backward()
    assert torch.allclose(layer.weight.grad[0], x.sum(0), atol=1e-5)


def test_unreadable_pictures_are_left_out_and_labels_stay_with_theirs(net, toy):
    source = toy(9, bad=(0, 4))
    found = extract(net, source, WHOLE, batch_size=2)
    assert found.index.tolist() == [1, 2, 3, 5, 6, 7, 8]
    assert found.y.tolist() == [i % 3 for i in found.index]
    assert torch.allclose(found.x, extract(net, toy(9), WHOLE).x[found.index], atol=1e-6)


def test_nothing_readable_names_the_first_reason(net, toy):
    with pytest.raises(ValueError, match=r"none of 2 pictures .* 0\.png: cut short"):
        extract(net, toy(2, bad=(0, 1)), WHOLE)


@pytest.mark.parametrize(("size", "resize"), [(224, 256), (96, 110), (64, 64), (32, 32)])
def test_tiny_pictures_are_taken_whole(net, size, resize):
    net.image_size = size
    found = preprocess_for(net, Normalize())
    assert (found.size, found.resize, found.interpolation) == (size, resize, "bicubic")


def test_four_class_tokens_end_with_the_pooled_vector(toy):
    torch.manual_seed(0)
    vit = backbones.create(BackboneConfig(name="vit_nano_patch8_64", image_size=16))
    pooled, four = (extract(vit, toy(3), WHOLE, kind=k).x for k in ("pooled", "cls-4"))
    assert four.shape == (3, 4 * vit.dim)
    assert torch.allclose(four[:, -vit.dim :], pooled, atol=1e-5)
    assert not torch.allclose(four[:, : vit.dim], pooled, atol=1e-2)


def test_a_shallow_network_gives_the_class_tokens_it_has(toy):
    vit = backbones.create(BackboneConfig(name="vit_atto_patch4_32", image_size=32))
    three, mean = (
        extract(vit, toy(3), replace(WHOLE, size=32, resize=32), kind=k).x
        for k in ("cls-4", "cls-4-mean")
    )
    assert three.shape == (3, 3 * vit.dim)
    assert torch.equal(mean[:, : 3 * vit.dim], three)
    assert mean.shape[1] == 4 * vit.dim


def test_a_conv_net_has_no_class_tokens_and_gives_the_pooled_vector(net, toy):
    a, b = (extract(net, toy(3), WHOLE, kind=k).x for k in ("pooled", "cls-4"))
    assert torch.equal(a, b)


def test_test_labels_are_numbered_as_the_training_set_numbers_them(net, toy):
    train, test = toy(6), toy(4, classes=2)
    test.classes = ("c", "a")
    data = Data(net, train, test, normalize=Normalize())
    assert data.features("pooled")[1].y.tolist() == [2, 0, 2, 0]
    with pytest.raises(ValueError, match="class 'z' is not among the classes of data"):
        translate(("a",), ("z", "a"))


def test_two_protocols_share_one_pass(net, toy):
    calls = []
    net.body[0].register_forward_hook(lambda *_: calls.append(1))
    data = Data(net, toy(4), toy(4), normalize=Normalize())
    assert data.features("pooled")[0] is data.features("pooled")[0]
    assert len(calls) == 2


def test_the_cache_key_changes_with_weights_pictures_and_preprocessing(net, toy):
    def key(source=None, preprocess=WHOLE, kind="pooled"):
        return cache_key(net, source or toy(4), preprocess, kind)

    first = key()
    assert key() == first
    other = toy(4)
    other.x[2, 0, 5, 5] += 1
    changed = [key(other), key(toy(4, bad=(1,))), key(kind="cls-4")]
    changed.append(key(preprocess=Preprocess(size=16, resize=18, normalize=Normalize())))
    with torch.no_grad():
        net.body[0].bias[3] += 1e-6
    changed.append(key())
    assert len({first, *changed}) == 6


def test_a_cache_gives_the_same_features_without_the_network(net, toy, tmp_path):
    def data():
        return Data(net, toy(9, bad=(2,)), toy(4), normalize=Normalize(), cache=tmp_path)

    first = data().features("pooled")
    net.body[0].register_forward_hook(lambda *_: pytest.fail("the network ran"))
    again = data().features("pooled")
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
        assert torch.equal(a.index, b.index)


def test_a_damaged_cache_is_named(net, toy, tmp_path):
    data = Data(net, toy(3), toy(4), normalize=Normalize(), cache=tmp_path)
    data.features("pooled")
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"cache .*\.safetensors: damaged"):
        Data(net, toy(3), toy(4), normalize=Normalize(), cache=tmp_path).features("pooled")


def test_without_labels_there_is_minus_one(net, toy):
    assert np.all(extract(net, toy(3, labeled=False), WHOLE).y.numpy() == -1)
