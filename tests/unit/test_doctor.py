import pytest

from saccade.doctor import installation, torch_mismatch


@pytest.mark.parametrize(
    ("torch", "torchvision"), [("2.15.0+cpu", "0.29.2"), ("2.15.0", "0.29.2+cpu")]
)
def test_a_cpu_torch_beside_a_full_torchvision_is_named_with_the_remedy(torch, torchvision):
    assert "pip install --force-reinstall torch torchvision" in torch_mismatch(torch, torchvision)


@pytest.mark.parametrize(
    ("torch", "torchvision"),
    [("2.15.0", "0.29.2"), ("2.15.0+cpu", "0.29.2+cpu"), ("2.15.0+cu130", "0.29.2")],
)
def test_builds_that_work_together_are_not_blamed(torch, torchvision):
    assert torch_mismatch(torch, torchvision) is None


def test_a_missing_package_is_named():
    assert "missing" in torch_mismatch(None, "0.29.2")


def test_this_installation_is_well():
    found = installation()
    assert found["problems"] == []
    assert found["packages"]["timm"]
    assert found["devices"]
