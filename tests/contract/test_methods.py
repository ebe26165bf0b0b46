"""Every method keeps the contract. Adding methods/<name>.py adds its tests."""

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toys import CLOCK, batch_for, build, train

from saccade import config, methods
from saccade.core import Backbone, Clock, Method
from saccade.nn.parts import Ema
from saccade.recipe import Recipe

NAMES = methods.names()


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


def test_recipes_fit_their_encoder_and_say_where_they_come_from(name):
    recipes = methods.recipes(name)
    assert {"demo", "small", "paper"} <= set(recipes)
    for recipe in recipes.values():
        assert isinstance(recipe, Recipe)
        assert isinstance(recipe.method, methods.get(name).Config)
        assert max(v.size for v in recipe.method.views) == recipe.backbone.image_size
        assert recipe.source


def test_compiled_equals_eager(name):
    eager, compiled = build(name).train(), build(name).train()
    fast = torch.compile(compiled, backend="eager")
    for i in range(2):
        a, b = (t(batch_for(name, i), Clock(i, 10, 5)).loss for t in (eager, fast))
        torch.testing.assert_close(a, b)


def test_the_class_has_the_name_of_the_paper_and_a_summary(name):
    cls = methods.get(name)
    assert issubclass(cls, Method)
    assert cls.__name__.lower() == name.replace("_", "")
    assert methods.summary(name).startswith(f"{cls.__name__}: ")


def test_an_unknown_method_lists_the_choices():
    with pytest.raises(ValueError, match="unknown method 'simclear'; choose from .*simclr"):
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
        'RECIPES = {"paper": 1}\n'
    )
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[saccade.methods]\ntheirs = theirs\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert methods.names() == sorted([*NAMES, "theirs"])
    assert methods.get("theirs").__name__ == "Theirs"
    assert methods.summary("theirs") == "Theirs: a method from outside."
    assert methods.recipes("theirs") == {"paper": 1}
    monkeypatch.delitem(sys.modules, "theirs")


@pytest.mark.slow
def test_two_ranks_train_as_one(tmp_path):
    """Gradients, batch statistics, queues and centers, over 20 steps of every method."""
    script = Path(__file__).with_name("ranks.py")
    runs = {}
    for world in (1, 2):
        out, store = tmp_path / f"{world}.pt", tmp_path / f"store{world}"
        ranks = [
            subprocess.Popen([sys.executable, script, str(r), str(world), store, out])
            for r in range(world)
        ]
        assert [p.wait(timeout=240) for p in ranks] == [0] * world
        runs[world] = torch.load(out)
    one, two = runs[1], runs[2]
    assert set(one) >= set(NAMES)
    for name in one:
        assert two[name]["losses"] == pytest.approx(one[name]["losses"], abs=1e-4, rel=0), name
        assert len(one[name]["losses"]) == 20
        for key, value in one[name]["state"].items():
            torch.testing.assert_close(two[name]["state"][key], value, atol=1e-3, rtol=1e-3)
