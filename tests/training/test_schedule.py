"""Learning rates against values that the original's schedulers gave."""

import pytest

from maskformer_jax.training.schedule import multistep, poly, two_stage
from maskformer_jax.types import Group

STEPS = 160_000
HEAD = Group(backbone=False, depth=0, decayed=True)


@pytest.mark.parametrize(("step", "rate"), [(0, 1e-4), (1, 9.9999437e-5), (80_000, 5.3588673e-5), (STEPS, 0.0)])
def test_poly_without_warmup(step, rate):
    schedule = poly(STEPS)(HEAD)
    assert 1e-4 * float(schedule(step)) == pytest.approx(rate, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 6e-11),
        (1, 4.006e-8),
        (750, 2.9873438e-5),
        (1499, 5.9454187e-5),
        (1500, 5.9493512e-5),
        (80_000, 3.2153204e-5),
    ],
)
def test_poly_with_warmup(step, rate):
    schedule = poly(STEPS, warmup_steps=1500, warmup_factor=1e-6)(HEAD)
    assert 6e-5 * float(schedule(step)) == pytest.approx(rate, rel=1e-4)


def test_multistep_drops_where_the_coco_recipe_does():
    schedule = multistep(554_400, warmup_steps=10)(HEAD)
    assert float(schedule(369_599)) == pytest.approx(1.0)
    assert float(schedule(369_600)) == pytest.approx(0.1)


def test_drops_and_their_factor_are_arguments():
    """Those of Mask2Former's COCO recipe."""
    schedule = multistep(368_750, drops=(327_778 / 368_750, 355_092 / 368_750))(HEAD)
    factors = [float(schedule(step)) for step in (327_777, 327_778, 355_091, 355_092)]
    assert factors == pytest.approx([1, 0.1, 0.1, 0.01])


BACKBONE = Group(backbone=True, depth=0, decayed=True)


@pytest.mark.parametrize(
    ("step", "backbone", "head"),
    [
        (0, 0, 0),
        (250, 0, 0.5),
        (500, 0, 1),
        (1000, 0.5, 0.994896),
        (1500, 1, 0.989789),
        (44_346, 0.544177, 0.538620),
        (88_692, 0, 0),
    ],
)
def test_two_stages_of_eomt(step, backbone, head):
    """Those of its COCO recipes."""
    schedule = two_stage(88_692, head_warmup_steps=500, backbone_warmup_steps=1000)
    found = [float(schedule(group)(step)) for group in (BACKBONE, HEAD)]
    assert found == pytest.approx([backbone, head], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(("step", "backbone", "head"), [(3500, 0.5, 0.925542), (10_000, 0.698525, 0.594033)])
def test_two_longer_stages_of_eomt(step, backbone, head):
    schedule = two_stage(20_208, head_warmup_steps=2000, backbone_warmup_steps=3000)
    found = [float(schedule(group)(step)) for group in (BACKBONE, HEAD)]
    assert found == pytest.approx([backbone, head], rel=1e-5)


def test_two_stages_without_a_warmup_start_at_the_full_rate():
    schedule = two_stage(10, head_warmup_steps=0, backbone_warmup_steps=0)
    assert [float(schedule(group)(0)) for group in (BACKBONE, HEAD)] == [1, 1]
