"""How far each mechanism's compiled outputs and gradients are from its eager ones, as JSON."""

import json

import torch
from mechanisms import MADE, picture


def outputs(layer, x):
    x = x.clone().requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    return y.detach(), x.grad


def difference(name):
    torch.manual_seed(0)
    layer = MADE[name]().eval()
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    pairs = zip(outputs(compiled, picture()), outputs(layer, picture()), strict=True)
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({name: difference(name) for name in MADE}))
