"""Every method keeps the contract. Adding methods/<name>.py adds its tests."""

import copy
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from toys import CLOCK, batch_for, build, share, train

from saccade import config, methods
from saccade.core import Backbone, Method, PatchBackbone
from saccade.listing import listing
from saccade.nn.parts import Ema
from saccade.recipe import Optim, Recipe

NAMES = methods.names()
FAMILIES = {"contrast", "clusters", "decorrelation", "generative", "instances", "masks", "pixels"}
FAMILIES |= {"teacher"}
ROOTS = (str(Path(__file__).parents[i]) for i in (1, 2))
PATHS = {**os.environ, "PYTHONPATH": os.pathsep.join(ROOTS)}  # for scripts: `toys` and the package


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_gradient_reaches_the_encoder_and_nothing_frozen(name):
    task = build(name).train()
    step = task(batch_for(name), CLOCK)
    step.loss.backward()
    assert step.loss.ndim == 0
    assert step.loss.isfinite()
    moved = [p for p in task.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in moved)
    assert all(p.grad is None for p in task.parameters() if not p.requires_grad)
    assert any(p.requires_grad for p in task.encoder.parameters())


def test_logs_are_detached_scalars_and_features_one_row_a_picture(name):
    step = build(name).train()(batch_for(name), CLOCK)
    assert step.logs
    assert all(v.ndim == 0 and not v.requires_grad and v.isfinite() for v in step.logs.values())
    assert step.features.shape == (8, 16)
    assert not step.features.requires_grad


def test_training_moves_the_encoder_and_every_teacher(name):
    task = build(name)
    before = copy.deepcopy(task)
    train(task, [batch_for(name, i) for i in range(2)])
    assert changed(before.encoder, task.encoder)
    olds = [m for m in before.modules() if isinstance(m, Ema)]
    for old, new in zip(olds, [m for m in task.modules() if isinstance(m, Ema)], strict=True):
        assert changed(old.module, new.module)


VARYING = {"beit", "data2vec"}  # pictures hide as many patches each in toys, in earnest fewer


def test_what_is_called_additive_takes_the_same_step_in_parts_and_nothing_else_does(name):
    task, batch = build(name), batch_for(name, 5)
    train(task, [batch_for(name, i) for i in range(2)])
    before = copy.deepcopy(task.state_dict())
    halves = [share(batch, i, 2) for i in range(2)]
    one, two = (step_in_parts(copy.deepcopy(task), parts) for parts in ([batch], halves))
    kept = [k for k, v in one.items() if v.is_floating_point() and v.numel()]
    moved = {k: (one[k] - before[k]).abs().max() for k in kept}
    same = all((one[k] - two[k]).abs().max() <= 1e-3 * moved[k] + 1e-9 for k in kept)
    assert same == (task.additive or name in VARYING)


def step_in_parts(task, parts):
    """The state after it, with batch norm that keeps its statistics."""
    for m in task.train().modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.eval()
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], 0.05)
    for part in parts:
        (task(part, CLOCK).loss / len(parts)).backward()
    task.before_update(CLOCK)
    optimizer.step()
    task.after_update(CLOCK)
    return task.state_dict()


def changed(old, new):
    return any(
        not torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True)
    )


def test_state_restores_the_exact_next_step(name):
    task, other = build(name), build(name)
    train(task, [batch_for(name, i) for i in range(2)])
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    other.load_state_dict(task.state_dict())
    losses = [train(t, [batch_for(name, i) for i in range(2, 4)]) for t in (task, other)]
    assert losses[0] == losses[1]
    for k, v in task.state_dict().items():
        assert torch.equal(v, other.state_dict()[k]), k


def test_two_runs_are_the_same_to_the_bit(name):
    batches = [batch_for(name, i) for i in range(3)]
    assert train(build(name), batches) == train(build(name), batches)


def test_every_state_is_registered_once_and_in_memory_order(name):
    """Or safetensors refuses the checkpoint."""
    state = build(name).state_dict()
    pointers = [t.data_ptr() for t in state.values() if t.numel()]
    assert len(pointers) == len(set(pointers))
    assert all(t.is_contiguous() for t in state.values())


def test_groups_hold_each_trainable_parameter_once(name):
    task = build(name)
    grouped = [id(p) for g in task.groups() for _, p in g.params]
    assert sorted(grouped) == sorted(id(p) for p in task.parameters() if p.requires_grad)


def test_kept_is_a_backbone_of_the_task(name):
    task = build(name)
    assert isinstance(task.kept(), Backbone)
    assert any(task.kept() is m for m in task.modules())


def test_config_is_frozen_and_survives_json(name):
    for cfg in (build(name).cfg, *(r.method for r in methods.recipes(name).values())):
        again = config.from_dict(type(cfg), json.loads(json.dumps(config.to_dict(cfg))))
        assert again == cfg
        with pytest.raises(dataclasses.FrozenInstanceError):
            cfg.views = ()


def test_the_remedy_for_a_collapse_names_settings_that_exist(name):
    cls = methods.get(name)
    for front, settings in (("method", cls.Config), ("optim", Optim)):
        known = {f.name for f in dataclasses.fields(settings)}
        assert set(re.findall(rf"{front}\.(\w+)", cls.remedy)) <= known


def test_recipes_fit_their_encoder_and_say_where_they_come_from(name):
    recipes = methods.recipes(name)
    assert {"demo", "small", "paper"} <= set(recipes)
    for recipe in recipes.values():
        assert isinstance(recipe, Recipe)
        assert isinstance(recipe.method, methods.get(name).Config)
        assert recipe.method.views[0].size == recipe.backbone.image_size
        assert recipe.source


@pytest.mark.slow
def test_compiled_equals_eager():
    """In a process of its own: the checks of shapes on every call cannot be compiled."""
    script = Path(__file__).with_name("compiled.py")
    done = subprocess.run(
        [sys.executable, script, *NAMES], env=PATHS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    losses = json.loads(done.stdout)
    assert set(losses) == set(NAMES)
    for eager, compiled in losses.values():
        assert compiled == pytest.approx(eager, rel=1e-5)


def test_the_class_has_the_name_of_the_paper_and_a_summary(name):
    cls = methods.get(name)
    assert issubclass(cls, Method)
    assert cls.__name__.lower() == name.replace("_", "")
    assert methods.summary(name).startswith(f"{cls.__name__}: ")


def test_the_list_tells_its_paper_and_its_family_and_what_it_needs(name):
    paper, year = methods.citation(name)
    doc = sys.modules[methods.get(name).__module__].__doc__
    assert year in doc
    assert 1990 < int(year) < 2100
    assert paper.partition(",")[0].partition(" ")[0] in doc
    family, needs = methods.FACTS[name]
    assert family in FAMILIES
    cls = methods.get(name)
    fields = {f.name for f in dataclasses.fields(cls.Config)}
    views = sum(v.count for v in cls.Config().views)
    (kind,) = (b.__args__[0] for b in cls.__orig_bases__)
    assert needs.split(", ")[0] == (f"{views} views" if views > 1 else "1 view")
    assert ("index" in needs) == ("images" in fields)
    assert ("plain ViT" in needs) == (kind is PatchBackbone)


def test_the_list_has_a_row_for_every_method_and_no_other():
    assert set(methods.FACTS) == set(NAMES)
    rows = listing("methods")
    assert [r["name"] for r in rows] == NAMES
    assert all(list(r) == ["name", "paper", "year", "family", "needs", "what"] for r in rows)
    simclr = next(r for r in rows if r["name"] == "simclr")
    assert (simclr["paper"], simclr["year"]) == ("Chen et al., arXiv:2002.05709", "2020")
    assert simclr["what"].startswith("tell the other view")


def test_an_unknown_method_is_told_what_was_meant():
    with pytest.raises(
        ValueError, match=r"setting method: 'simclear' is unknown; did you mean simclr"
    ):
        methods.get("simclear")


def test_names_and_summaries_do_not_import_torch():
    code = (
        "import sys; from saccade import methods; print(*map(methods.summary, methods.names()));"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "SimCLR: tell the other view" in done.stdout


def test_another_package_adds_a_method_by_an_entry_point(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(
        '"""Theirs: a method from outside."""\n'
        "from saccade.core import Method\n\n\n"
        "class Theirs(Method):\n    def forward(self, batch, clock): ...\n\n\n"
        "RECIPES = {}\n"
    )
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[saccade.methods]\ntheirs = theirs\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert methods.names() == sorted([*NAMES, "theirs"])
    assert methods.get("theirs").__name__ == "Theirs"
    assert methods.summary("theirs") == "Theirs: a method from outside."
    assert methods.recipes("theirs") == {}
    monkeypatch.delitem(sys.modules, "theirs")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Steps of every method on one process, on two, and on two that share the weights out."""
    out, script = tmp_path_factory.mktemp("ranks"), Path(__file__).with_name("ranks.py")
    ranks = [subprocess.Popen([sys.executable, script, str(r), out], env=PATHS) for r in range(2)]
    try:
        assert ranks[0].wait(timeout=480) == ranks[1].wait(timeout=60) == 0
    finally:
        for p in ranks:
            p.kill()
    return {path.name: torch.load(path) for path in out.glob("*.?")}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "steps"), [("two", 10), ("shard", 3)])
@pytest.mark.parametrize("name", [*NAMES, "moco symmetric", "pixpro instance"])
def test_two_ranks_train_as_one(runs, name, kind, steps):
    one, two = runs["one.0"][name], runs[f"{kind}.0"][name]
    assert len(two["losses"]) == steps
    assert two["losses"] == pytest.approx(one["losses"][:steps], abs=1e-4, rel=0)
    for key, value in one["gradients"].items():
        size = value.abs().max().item()
        torch.testing.assert_close(two["gradients"][key], value, atol=1e-4 * size, rtol=0)
    for key, value in one["states"][steps].items():
        torch.testing.assert_close(two["states"][steps][key], value, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "steps"), [("two", 10), ("shard", 3)])
@pytest.mark.parametrize("name", [*NAMES, "moco symmetric", "pixpro instance"])
def test_ranks_agree_to_the_bit_on_all_state(runs, name, kind, steps):
    """Weights, teachers, queues, centers and batch statistics."""
    first, second = (runs[f"{kind}.{rank}"][name]["states"][steps] for rank in (0, 1))
    assert all(torch.equal(v, second[k]) for k, v in first.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_ranks_that_share_weights_hold_every_one_once_and_half_of_them_each(runs, name):
    first, second = (runs[f"shard.{rank}"][name]["held"] for rank in (0, 1))
    assert first + second == runs["one.0"][name]["held"]
    assert 0.4 < first / (first + second) < 0.6
