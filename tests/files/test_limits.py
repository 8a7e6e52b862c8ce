"""Limits on what one input may take."""

import pytest

from maskformer_jax.errors import UserError
from maskformer_jax.files import limits
from tests.conftest import ROOT

ALL = [value for value in vars(limits).values() if isinstance(value, limits.Limit)]


@pytest.mark.parametrize("limit", ALL, ids=lambda limit: limit.variable)
def test_every_limit_is_documented_and_can_be_raised(limit, monkeypatch):
    text = (ROOT / "docs" / "data.md").read_text()
    assert f"| `{limit.variable}` | {limit.default:,} |" in text
    limit.check(limit.default, "a.png")
    with pytest.raises(UserError, match=rf"^a.png: .* {limit.what}; the limit is .* {limit.variable} to a higher"):
        limit.check(limit.default + 1, "a.png")
    monkeypatch.setenv(limit.variable, f"{limit.default + 1}")
    limit.check(limit.default + 1, "a.png")


@pytest.mark.parametrize("text", ["many", "0", "-5", "1e9"])
def test_a_limit_that_is_no_number_is_named(monkeypatch, text):
    monkeypatch.setenv(limits.IMAGE_PIXELS.variable, text)
    with pytest.raises(UserError, match=f"MASKFORMER_MAX_IMAGE_PIXELS='{text}': expected a positive whole number"):
        limits.IMAGE_PIXELS.check(1, "a.png")
