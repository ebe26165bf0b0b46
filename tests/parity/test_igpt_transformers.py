"""iGPT against transformers' ImageGPT with the same weights.

Its quirks: the start is the last row of the embedding; labels are shifted inside and one pixel is
left out of the loss; the hidden states but the last come before the next norm; a causal mask is
applied whatever the settings say, so the BERT objective has no counterpart there.
"""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from toys import CLOCK, colored, views
from transformers import (
    ImageGPTConfig,
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    ImageGPTImageProcessor,
)

from saccade.core import View
from saccade.evals.joint import Classifier, Joint
from saccade.methods.igpt import IGPT
from saccade.recipe import Normalize

HALF = Normalize(mean=(0.5,) * 3, std=(0.5,) * 3)  # pictures in [-1, 1]


def ours():
    torch.manual_seed(0)
    net = colored(normalize=HALF).eval()
    with torch.no_grad():  # norms start at values that hide mistakes
        for p in net.parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
    return net


def theirs(net):
    cfg = ImageGPTConfig(
        vocab_size=9,
        n_positions=64,
        n_embd=16,
        n_layer=2,
        n_head=2,
        activation_function="quick_gelu",
        layer_norm_epsilon=1e-5,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
    )
    model = ImageGPTForCausalImageModeling(cfg).eval()
    state = {k: torch.zeros_like(v) for k, v in model.state_dict().items() if k.endswith("bias")}
    state["transformer.wte.weight"] = torch.cat([net.embed.weight, net.start[None]])
    state["transformer.wpe.weight"] = net.positions
    state["transformer.ln_f.weight"] = net.norm.weight
    state["lm_head.weight"] = net.output.weight
    for i, block in enumerate(net.blocks):
        at = f"transformer.h.{i}"
        state[f"{at}.ln_1.weight"], state[f"{at}.ln_2.weight"] = (
            block.norm1.weight,
            block.norm2.weight,
        )
        state[f"{at}.attn.c_attn.weight"] = block.attn.qkv.weight.T
        state[f"{at}.attn.c_proj.weight"] = block.attn.proj.weight.T
        state[f"{at}.mlp.c_fc.weight"] = block.mlp.fc1.weight.T
        state[f"{at}.mlp.c_proj.weight"] = block.mlp.fc2.weight.T
    model.load_state_dict(state)
    return model


@pytest.fixture
def pair():
    net = ours()
    return net, theirs(net)


@pytest.fixture
def tokens():
    return torch.randint(8, (3, 8, 8), generator=torch.Generator().manual_seed(0))


def fed(tokens):
    """The start, then all pixels but the last."""
    flat = tokens.flatten(1)
    return torch.cat([torch.full_like(flat[:, :1], 8), flat[:, :-1]], 1)


def test_scores_are_the_same(pair, tokens):
    net, model = pair
    with torch.no_grad():
        want = model(fed(tokens)).logits
        torch.testing.assert_close(net.scores(net.encode(tokens)), want, atol=1e-5, rtol=1e-4)


def test_the_loss_is_the_cross_entropy_of_their_scores_and_not_their_loss(pair, tokens):
    net, model = pair
    method = IGPT(IGPT.Config(views=(View(size=8),)), net)
    net.fitted.fill_(True)  # the palette stays
    with torch.no_grad():
        loss = method(views(net.paint(tokens)), CLOCK).loss
        found = model(fed(tokens), labels=fed(tokens))
    flat = tokens.flatten(1)
    assert loss.item() == pytest.approx(F.cross_entropy(found.logits.mT, flat).item(), rel=1e-5)
    short = F.cross_entropy(found.logits[:, :-1].mT, flat[:, :-1])  # one pixel short
    assert found.loss.item() == pytest.approx(short.item(), rel=1e-5)
    assert abs(found.loss.item() - loss.item()) > 1e-4


def test_layers_are_the_means_of_their_states_through_the_next_norm(pair, tokens):
    net, model = pair
    with torch.no_grad():
        states = model(fed(tokens), output_hidden_states=True).hidden_states
        found = net.layers(net.paint(tokens))
        for layer, h, block in zip(found, states, model.transformer.h, strict=False):
            torch.testing.assert_close(layer, block.ln_1(h).mean(1), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found[-1], states[-1].mean(1), atol=1e-5, rtol=1e-4)


def test_gradients_are_the_same(pair, tokens):
    net, model = pair
    F.cross_entropy(net.scores(net.encode(tokens)).mT, tokens.flatten(1)).backward()
    F.cross_entropy(model(fed(tokens)).logits.mT, tokens.flatten(1)).backward()
    wte = model.transformer.wte.weight.grad
    torch.testing.assert_close(net.embed.weight.grad, wte[:-1], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(net.start.grad, wte[-1], atol=1e-6, rtol=1e-4)
    for mine, its in zip(net.blocks, model.transformer.h, strict=True):
        for a, b in (
            (mine.attn.qkv, its.attn.c_attn),
            (mine.attn.proj, its.attn.c_proj),
            (mine.mlp.fc1, its.mlp.c_fc),
            (mine.mlp.fc2, its.mlp.c_proj),
        ):
            torch.testing.assert_close(a.weight.grad, b.weight.grad.T, atol=1e-6, rtol=1e-4)


def test_classes_come_from_the_mean_that_counts_the_start_and_their_loss_is_added(pair, tokens):
    """Fed without the start, as their documentation has it, the classes are others."""
    net, model = pair
    mine, x, y = Classifier(net, 3), net.paint(tokens), torch.tensor([2, 0, 1])
    torch.nn.init.normal_(mine.head.weight)
    cfg = deepcopy(model.config)
    cfg.num_labels = 3
    its = ImageGPTForImageClassification(cfg).eval()
    its.transformer.load_state_dict(model.transformer.state_dict())
    its.score.weight.data = mine.head.weight.data
    with torch.no_grad():
        want = its(fed(tokens)).logits
        torch.testing.assert_close(mine(x), want, atol=1e-5, rtol=1e-4)
        assert (its(tokens.flatten(1)).logits - want).abs().max() > 1e-3
        colors = F.cross_entropy(model(fed(tokens)).logits.mT, tokens.flatten(1))
        both = mine.loss(Joint(), x, y, torch.arange(3))
    assert both.item() == pytest.approx((colors + F.cross_entropy(want, y)).item(), rel=1e-5)


def test_tokens_are_those_of_their_processor(pair):
    net, _ = pair
    x = torch.randint(256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    processor = ImageGPTImageProcessor(
        clusters=net.palette.tolist(), size={"height": 8, "width": 8}
    )
    want = processor(list(x.to(torch.uint8)), return_tensors="pt")["input_ids"]
    found = net.tokens(x / 127.5 - 1).flatten(1)
    assert torch.equal(found, want)
