"""Methods with a state for every picture: the number of pictures, and resuming."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from saccade import config, pretraining
from saccade import run as runs


def small_run(tmp_path, method, *sets, pictures=40):
    path = tmp_path / "pictures.npz"
    x = np.random.default_rng(0).integers(0, 255, (pictures, 32, 32, 3), dtype=np.uint8)
    np.savez(path, x=x)
    run = replace(runs.from_recipe(method, "small"), data=str(path), steps=6, batch_size=8)
    common = ("backbone.name=resnet10_w16", "engine.save_seconds=0", "engine.keep=10")
    return config.override(run, *common, *sets)


PIC = ("method.hidden=16", "method.dim=8", "method.negatives=12", "method.window=16")


def test_the_run_fills_in_the_number_of_pictures(tmp_path):
    run = small_run(tmp_path, "memory_bank")
    assert pretraining.counted(run, 40).method.images == 40
    assert pretraining.counted(pretraining.counted(run, 40), 40).method.images == 40
    simclr = small_run(tmp_path, "simclr")
    assert pretraining.counted(simclr, 40) is simclr


def test_another_number_than_the_datas_is_refused(tmp_path):
    run = config.override(small_run(tmp_path, "memory_bank"), "method.images=39")
    with pytest.raises(ValueError, match=r"method\.images: 39, but the data has 40 pictures"):
        pretraining.pretrain(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "sets"),
    [("pic", (*PIC, "method.stride=4")), ("memory_bank", ("method.negatives=10",))],
)
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, method, sets):
    run, whole, again = small_run(tmp_path, method, *sets), tmp_path / "whole", tmp_path / "again"
    pretraining.pretrain(run, whole)
    assert runs.read(whole / runs.FILE).method.images == 40
    shutil.copytree(whole, again)
    (again / "done.json").unlink()
    for step in (4, 5, 6):
        shutil.rmtree(again / "checkpoints" / f"step-{step:08d}")
    pretraining.prepare(run, again, resume=True, overwrite=False)
    pretraining.pretrain(run, again, resume=True)
    one, two = (
        load_file(f / "checkpoints/step-00000006/model.safetensors") for f in (whole, again)
    )
    assert one.keys() == two.keys()
    assert all(np.array_equal(v, two[k]) for k, v in one.items())


def test_resuming_on_another_number_of_pictures_is_refused(tmp_path):
    run, out = small_run(tmp_path, "memory_bank"), tmp_path / "run"
    pretraining.pretrain(run, out)
    small_run(tmp_path, "memory_bank", pictures=41)
    with pytest.raises(ValueError, match=r"method differ from .*run\.json"):
        pretraining.pretrain(run, out, resume=True)
    with pytest.raises(ValueError, match=r"method differ from .*run\.json"):
        pretraining.pretrain(config.override(run, "method.images=7"), out, resume=True)


@pytest.mark.parametrize("method", ["byol", "dino", "moco"])
def test_teachers_start_from_the_given_weights_too(tmp_path, method):
    """Or continuing from a checkpoint would follow a random teacher."""
    run = config.override(small_run(tmp_path, method), "method.hidden=16")
    pretraining.weights.save_backbone(
        tmp_path / "given", pretraining.build(replace(run, seed=7)).encoder, run.backbone,
        run.normalize, {},
    )  # fmt: skip
    given = load_file(tmp_path / "given" / "model.safetensors")
    built = pretraining.build(replace(run, weights=str(tmp_path / "given")))
    teacher = getattr(built, "key_encoder" if method == "moco" else "teacher")
    name = next(k for k in given if k.endswith("layer1.0.conv1.weight"))
    for net in (built.encoder, teacher.module):
        assert (net.state_dict()["net." + name].numpy() == given[name]).all()
