import zlib

import numpy as np
import pytest

from maskformer_jax.ops.resample import resample_patch_kernel, resample_table


def named(name, shape):
    """The random values behind the golden values below, which timm 1.0.15 computed in float32."""
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def test_an_equal_size_keeps_every_value():
    table = named("pos37", (1, 1369, 8)).reshape(37, 37, 8)
    np.testing.assert_array_equal(resample_table(table, (37, 37)), table)
    kernel = named("patch14", (2, 3, 14, 14)).transpose(2, 3, 1, 0)
    assert resample_patch_kernel(kernel, 14) is kernel


@pytest.mark.parametrize("size", [(5, 9), (20, 12)])
def test_a_constant_table_stays_constant(size):
    np.testing.assert_allclose(resample_table(np.full((8, 8, 2), 3.0), size), np.full((*size, 2), 3.0), atol=1e-5)


@pytest.mark.parametrize(
    ("size", "mean", "first", "last"),
    [
        ((8, 8), 0.142857, [0.066663, 0.014959, 0.346993], [0.258652, 0.155412, 0.251038]),
        ((40, 40), 0.639925, [-1.371376, 0.438332, 1.590117], [-0.229248, 0.263522, -0.856647]),
        ((64, 64), 0.643456, [-1.560785, 0.532891, 1.908695], [-0.159207, 0.201411, -0.917754]),
        ((6, 10), 0.139042, [0.056872, 0.049794, 0.168513], [0.183096, 0.153510, 0.261771]),
    ],
)
def test_tables_are_resampled_as_by_timm(size, mean, first, last):
    found = np.asarray(resample_table(named("pos37", (1, 1369, 8)).reshape(37, 37, 8), size))
    assert found.shape == (*size, 8)
    np.testing.assert_allclose(np.abs(found).mean(), mean, atol=1e-5)
    np.testing.assert_allclose(found[0, 0, :3], first, atol=1e-4)
    np.testing.assert_allclose(found[-1, -1, -3:], last, atol=1e-4)


def test_patch_kernels_are_resampled_as_by_timm():
    kernel = named("patch14", (2, 3, 14, 14)).transpose(2, 3, 1, 0)
    found = resample_patch_kernel(kernel, 16).transpose(3, 2, 0, 1)
    assert found.shape == (2, 3, 16, 16)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.abs(found).mean(), 0.823526, atol=1e-5)
    np.testing.assert_allclose(found.sum(), 29.416925, atol=1e-3)
    np.testing.assert_allclose(found[0, 0, 0, :4], [0.973492, 0.610133, 0.021977, -0.484621], atol=1e-4)
    np.testing.assert_allclose(found[1, 2, 15, -3:], [0.534261, 2.179704, -0.136332], atol=1e-4)


def test_tokens_keep_their_scale_with_larger_patches():
    """The products with resized patches are those of the old kernel: exactly, where resizing loses nothing."""
    kernel = named("kernel", (4, 4, 3, 5)).astype(np.float64)
    patch = named("patch", (4, 4, 3)).astype(np.float64)
    resized = resample_table(patch, (6, 6))
    before, after = np.tensordot(patch, kernel, 3), np.tensordot(resized, resample_patch_kernel(kernel, 6), 3)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)
