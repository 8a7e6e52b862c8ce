"""Learning rates against values that the original's schedulers gave."""

import pytest

from maskformer_jax.training.schedule import multistep, poly

STEPS = 160_000


@pytest.mark.parametrize(("step", "rate"), [(0, 1e-4), (1, 9.9999437e-5), (80_000, 5.3588673e-5), (STEPS, 0.0)])
def test_poly_without_warmup(step, rate):
    schedule = poly(1e-4, STEPS, warmup_steps=0, warmup_factor=1.0)
    assert float(schedule(step)) == pytest.approx(rate, rel=1e-6, abs=1e-12)


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
    schedule = poly(6e-5, STEPS, warmup_steps=1500, warmup_factor=1e-6)
    assert float(schedule(step)) == pytest.approx(rate, rel=1e-4)


def test_multistep_drops_where_the_coco_recipe_does():
    schedule = multistep(1e-4, 554_400, warmup_steps=10, warmup_factor=1.0)
    assert float(schedule(369_599)) == pytest.approx(1e-4)
    assert float(schedule(369_600)) == pytest.approx(1e-5)
