"""Operations on pixels, against TensorFlow's own and a loop; against the reference in golden/augment_golden_test.py."""

import numpy as np
import pytest
import tensorflow as tf

from simclr_tf import color_ops

SIZE = 32
rng = np.random.default_rng(0)


@pytest.mark.parametrize("value", [-0.2, 0.0, 0.5, 1.3])
def test_colour_ops_on_plain_and_overshooting_images(value):
    """No hue where there is no chroma, no saturation where there is no light; bicubic crops leave [0, 1]."""
    image = np.full([1, SIZE, SIZE, 3], value, np.float32)
    saturation = color_ops.saturation
    for op, factor in ((color_ops.hue, 0.1), (saturation, 0.0), (saturation, 1.7), (color_ops.contrast, 2)):
        np.testing.assert_allclose(op(image, factor), image, rtol=0, atol=1e-6)


def test_saturation_and_hue_equal_tensorflow_where_crops_overshoot():
    image = rng.uniform(-0.1, 1.1, size=[SIZE, SIZE, 3]).astype(np.float32)
    for factor in (0.0, 0.3, 1.0, 1.8):
        expected = np.clip(tf.image.adjust_saturation(image, factor), 0, 1)
        np.testing.assert_allclose(np.clip(color_ops.saturation(image, factor), 0, 1), expected, rtol=0, atol=1e-5)
    for delta in (-0.2, -0.01, 0.13):
        expected = tf.image.adjust_hue(image, delta)
        np.testing.assert_allclose(color_ops.hue(image, delta), expected, rtol=0, atol=1e-5)


def test_blur_per_image_sigma_and_against_a_loop():
    images = rng.uniform(size=[2, 9, 7, 3])
    sigmas = [0.7, 1.9]
    output = color_ops.gaussian_blur(images.astype(np.float32), 4, sigmas)
    for image, sigma, blurred in zip(images, sigmas, output, strict=True):
        offsets = np.arange(-2, 3)
        kernel = np.exp(-(offsets**2) / (2 * sigma**2))
        kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
        padded = np.pad(image, [(2, 2), (2, 2), (0, 0)])
        expected = sum(kernel[i, j] * padded[i : i + 9, j : j + 7] for i in range(5) for j in range(5))
        np.testing.assert_allclose(blurred, expected, rtol=0, atol=1e-6)
