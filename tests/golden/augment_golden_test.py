"""Crops, colours and blur against numbers recorded from google-research/simclr (ops_augment.npz, ops_augment.json)."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from simclr_tf import augment, color_ops

FOLDER = pathlib.Path(__file__).parent
ARRAYS = np.load(FOLDER / "ops_augment.npz")
CASES = json.loads((FOLDER / "ops_augment.json").read_text())
TOLERANCE = 2e-6
COLOR_OPS = {
    "brightness_v1": color_ops.brightness_add,
    "brightness_v2": color_ops.brightness_multiply,
    "contrast": color_ops.contrast,
    "saturation": color_ops.saturation,
    "hue": color_ops.hue,
}
BATCH = 256


def case_id(case):
    return "_".join(str(value) for value in list(case.values())[:4])


def ks_distance(samples, quantiles, levels):
    """The largest distance between the samples' distribution and the quantiles at their levels, ties allowed for."""
    samples = np.sort(samples)
    at_most = np.searchsorted(samples, quantiles, side="right") / len(samples)
    below = np.searchsorted(samples, quantiles, side="left") / len(samples)
    return np.max(np.maximum(np.asarray(levels) - at_most, below - np.asarray(levels)))


def ks_critical(n, m):
    """Two samples of n and m from one distribution lie further apart in one of a thousand cases."""
    return 1.95 * np.sqrt(1 / n + 1 / m)


@pytest.mark.parametrize("case", CASES["eval_preprocessing"], ids=case_id)
def test_preprocess_for_eval(case):
    expected = ARRAYS[f"eval/{case['case']}/output"]
    image = ARRAYS[f"eval/{case['case']}/input"]
    for variant in (image, image.astype(np.float32) / 255):
        output = augment.preprocess_for_eval(variant, case["image_size"], case["test_crop"])
        np.testing.assert_allclose(output, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", CASES["gaussian_blur"], ids=case_id)
def test_gaussian_blur(case):
    name = f"blur/{case['case']}/input"
    image = ARRAYS[name] if name in ARRAYS else ARRAYS[name + "_u8"].astype(np.float32) / 255
    output = color_ops.gaussian_blur(image, case["kernel_size"], case["sigma"])
    np.testing.assert_allclose(output, ARRAYS[f"blur/{case['case']}/output"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("op", COLOR_OPS)
def test_color_op(op):
    """All recorded factors, as a batch with one factor an image. The recorded outputs are clipped."""
    names = [name for name in ARRAYS.files if name.startswith(f"color/{op}/")]
    factors = np.array([name.rsplit("/", 1)[1] for name in names], np.float32)
    output = COLOR_OPS[op](np.stack([ARRAYS["color/input"]] * len(names)), factors)
    expected = np.stack([ARRAYS[name] for name in names])
    assert len(names) >= 4
    np.testing.assert_allclose(np.clip(output, 0, 1), expected, rtol=0, atol=TOLERANCE)


def test_grayscale():
    output = color_ops.grayscale(ARRAYS["color/input"])
    np.testing.assert_allclose(output, ARRAYS["color/grayscale"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", CASES["crop_box_distribution"], ids=case_id)
def test_crop_boxes(case):
    height, width, n = case["height"], case["width"], case["n"]

    @tf.function
    def sample():
        seeds = tf.stack([tf.range(n), tf.fill([n], 20)], axis=1)
        return tf.map_fn(lambda seed: augment.random_crop_box(height, width, seed), seeds)

    top, left, box_height, box_width = np.moveaxis(sample().numpy().astype(float), 1, 0)
    samples = {
        "area_fraction": box_height * box_width / (height * width),
        "aspect_w_over_h": box_width / box_height,
        "center_y": (top + box_height / 2) / height,
        "center_x": (left + box_width / 2) / width,
    }
    distances = {name: ks_distance(values, case[name], case["quantile_levels"]) for name, values in samples.items()}
    assert max(distances.values()) < ks_critical(n, n), distances
    for name in ("area_fraction", "aspect_w_over_h"):  # few boxes come near the bounds, but they come quite near
        extremes = [samples[name].min(), samples[name].max()]
        np.testing.assert_allclose(extremes, [case[name][0], case[name][-1]], rtol=0, atol=0.05, err_msg=name)


@pytest.fixture(scope="module", params=CASES["train_augmentation_distribution"], ids=case_id)
def training_views(request):
    """A recorded case and 8,192 views by its rules; the recorded ones have no blur, which the reference adds later."""
    case = request.param
    image = tf.constant(ARRAYS[f"augment/{case['case']}/input"])
    size = case["image_size"]

    def distort(crops, draws):
        crops = tf.reshape(crops, [BATCH, size, size, 3])
        draws = tf.reshape(draws, [BATCH, augment.NUM_DRAWS])
        views = augment.distort(crops, draws, case["color_jitter_strength"], blur=False)
        spread = tf.reduce_max(views, axis=-1) - tf.reduce_min(views, axis=-1)
        gray = tf.reduce_max(spread, axis=[1, 2]) < 1e-5
        mean, variance = tf.nn.moments(views, axes=[1, 2])
        return mean, tf.sqrt(variance), gray

    views = tf.data.Dataset.range(4096).map(
        lambda i: augment.crop_two_views(image, tf.stack([i, 21]), size), num_parallel_calls=2
    )
    views = views.batch(BATCH // 2, drop_remainder=True).map(distort, num_parallel_calls=2).unbatch().batch(8192)
    mean, std, gray = next(iter(views))
    return case, mean.numpy(), std.numpy(), gray.numpy()


def test_training_views(training_views):
    case, mean, std, _ = training_views
    distances = {
        f"{name} {channel}": ks_distance(values[:, channel], case[f"{name}_per_channel_quantiles"][channel], levels)
        for levels in [case["quantile_levels"]]
        for name, values in (("mean", mean), ("std", std))
        for channel in range(3)
    }
    assert max(distances.values()) < ks_critical(case["n"], len(mean)), distances


def test_fraction_gray(training_views):
    case, _, _, gray = training_views
    deviation = np.sqrt(0.2 * 0.8 * (1 / case["n"] + 1 / len(gray)))
    assert abs(np.mean(gray) - case["fraction_gray"]) < 3.3 * deviation
