"""How weights start: the distributions that the original's have."""

import re

import jax
import numpy as np
import pytest

from tests.parity.golden import DETR, TRANSFORMER_FPN, maskformer, per_pixel

# Few blocks and layers, since each is initialized like its neighbor.
FEW = {**DETR, "num_layers": 2}
MODELS = {
    "resnet50": {"backbone": {"name": "resnet50", "depths": (1, 1, 1, 1)}, "decoder": FEW},
    "swin": {"backbone": {"name": "swin_tiny", "depths": (1, 1, 1, 1)}, "decoder": FEW},
    "encoder": {
        "backbone": {"name": "resnet10_slim"},
        "pixel_decoder": {**TRANSFORMER_FPN, "num_layers": 2},
        "decoder": {**FEW, "memory": "encoded"},
    },
}


@pytest.fixture(scope="module", params=[*MODELS, "per_pixel"])
def params(request):
    name = request.param
    network = maskformer(150, **MODELS[name]) if name in MODELS else per_pixel(150, "resnet10_slim")
    return jax.device_get(network.init(jax.random.key(0))[0])


def uniform(bound):
    """Within the bound, close to it, and as spread as a uniform distribution."""

    def check(name, value):
        assert np.abs(value).max() <= bound * (1 + 1e-6), name
        if value.size > 1000:
            assert np.abs(value).max() >= 0.99 * bound, name
            assert value.std() == pytest.approx(bound / 3**0.5, rel=0.05), name
            assert abs(value.mean()) < 5 * bound / value.size**0.5, name
        else:
            assert 0.6 * bound < np.abs(value).max(), name

    return check


def normal(std):
    def check(name, value):
        assert value.std() == pytest.approx(std, rel=0.1 if value.size < 5000 else 0.03), name
        assert np.abs(value).max() > 2.5 * std, name

    return check


def constant(number):
    return lambda name, value: np.testing.assert_array_equal(value, number, err_msg=name)


def fan_in(value):
    return int(np.prod(value.shape[:-1]))


def fan_out(value):
    return int(np.prod(value.shape[:2])) * value.shape[-1]


# The first pattern that matches a name says what its values are.
RULES = [
    (r"norm\d*\.scale$", lambda v: constant(1.0)),
    (r"norm\d*\.bias$", lambda v: constant(0.0)),
    (r"query_embed$", lambda v: normal(1.0)),
    (r"position_bias$", lambda v: normal(0.02)),
    (r"^backbone\.res\d\.\d+\.(attention|linear).*kernel$", lambda v: uniform(fan_in(v) ** -0.5)),
    (r"^backbone\..*(patch|reduction)\.kernel$", lambda v: uniform(fan_in(v) ** -0.5)),
    (r"^backbone\.patch\.bias$", lambda v: uniform(48**-0.5)),
    (r"^backbone\..*attention\.\w+\.bias$", lambda v: uniform(v.size**-0.5)),
    (r"^backbone\..*linear1\.bias$", lambda v: uniform((v.size / 4) ** -0.5)),
    (r"^backbone\..*linear2\.bias$", lambda v: uniform((4 * v.size) ** -0.5)),
    (r"^backbone\..*conv\.kernel$", lambda v: normal((2 / fan_out(v)) ** 0.5)),
    (r"attention\.(query|key|value)\.kernel$", lambda v: uniform((6 / 1024) ** 0.5)),
    (r"attention\.output\.kernel$", lambda v: uniform((6 / 512) ** 0.5)),
    (r"attention\.\w+\.bias$", lambda v: constant(0.0)),
    (r"layers\.\d\.linear\d\.kernel$", lambda v: uniform((6 / 2304) ** 0.5)),
    (r"linear1\.bias$", lambda v: uniform(1 / 16)),
    (r"linear2\.bias$", lambda v: uniform(2048**-0.5)),
    (r"^heads\.(class_head|mask_head)\.", lambda v: uniform(1 / 16)),
    (r"^pixel_head\.kernel$", lambda v: normal((2 / fan_out(v)) ** 0.5)),
    (r"(input_projection|lateral|output|mask_features)\.kernel$", lambda v: uniform((3 / fan_in(v)) ** 0.5)),
    (r"(input_projection|mask_features|pixel_head)\.bias$", lambda v: constant(0.0)),
]


def test_every_parameter_starts_as_the_originals(params):
    for name, value in params.items():
        rule = next((rule for pattern, rule in RULES if re.search(pattern, name)), None)
        assert rule is not None, f"no rule for {name}"
        rule(value)(name, value)


def test_no_two_matrices_start_the_same(params):
    seen = {}
    for name, value in params.items():
        if value.ndim > 1:
            first = value.ravel()[:8].tobytes()
            assert first not in seen, (name, seen.get(first))
            seen[first] = name
