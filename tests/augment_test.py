"""Augmentation: purity, ranges, probabilities and independence. Recorded numbers are in golden/augment_golden_test.py.

Most tests choose pictures on which an operation's random factor can be read off the result.
"""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from simclr_tf import augment

N = 2048
SIZE = 32
rng = np.random.default_rng(0)
PHOTO = rng.integers(0, 256, [40, 50, 3], np.uint8)


def draws(seed=1, n=N, **fixed):
    """Uniform draws for n views, with named columns fixed."""
    rows = np.random.default_rng(seed).uniform(size=[n, augment.NUM_DRAWS]).astype(np.float32)
    columns = np.split(rows, np.cumsum(augment.DRAW_SIZES)[:-1], axis=1)  # views into rows
    for name, value in fixed.items():
        columns[augment.Draw._fields.index(name)][:] = value
    return rows


def ks_to_uniform(samples, low, high):
    """Kolmogorov-Smirnov distance times sqrt(n): above 1.95 in one of a thousand cases."""
    expected = np.clip((np.sort(samples) - low) / (high - low), 0, 1)
    n = len(samples)
    ranks = np.arange(n + 1) / n
    return np.sqrt(n) * max(np.max(expected - ranks[:-1]), np.max(ranks[1:] - expected))


def is_share(flags, probability):
    """Whether so many flags are set as `probability` allows within 3.5 standard deviations."""
    deviation = np.sqrt(probability * (1 - probability) / len(flags))
    return abs(np.mean(flags) - probability) < 3.5 * deviation


def plain(color, n=N):
    return np.broadcast_to(np.asarray(color, np.float32), [n, SIZE, SIZE, 3])


# --- Purity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", [PHOTO, PHOTO.astype(np.float32) / 255], ids=["uint8", "float"])
def test_two_views_are_pure(image):
    views = augment.two_views(image, (3, 4), SIZE)
    again = augment.two_views(image, (3, 4), SIZE)
    dataset = tf.data.Dataset.from_tensors(image).map(lambda image: augment.two_views(image, (3, 4), SIZE))
    piped = next(iter(dataset))
    for view, same, mapped in zip(views, again, piped, strict=True):
        assert view.shape == (SIZE, SIZE, 3) and view.dtype == tf.float32
        assert 0 <= np.min(view) and np.max(view) <= 1
        np.testing.assert_array_equal(view, same)
        np.testing.assert_array_equal(view, mapped)
    assert dataset.element_spec[0].shape == (SIZE, SIZE, 3)
    assert not np.array_equal(views[0], views[1])
    assert not np.array_equal(views[0], augment.two_views(image, (3, 5), SIZE)[0])


def test_uint8_and_float_images_give_the_same_views():
    for ours, others in zip(
        augment.two_views(PHOTO, (3, 4), SIZE), augment.two_views(PHOTO / np.float32(255), (3, 4), SIZE), strict=True
    ):
        np.testing.assert_allclose(ours, others, rtol=0, atol=1e-5)


def test_a_view_does_not_depend_on_its_batch():
    crops, rows = rng.uniform(size=[N, SIZE, SIZE, 3]).astype(np.float32), draws()
    batch = augment.distort(crops, rows)
    np.testing.assert_array_equal(augment.distort(crops[:2], rows[:2]), batch[:2])


def test_eager_equals_pipeline_for_fine_tuning_and_evaluation():
    dataset = tf.data.Dataset.from_tensors(PHOTO).map(
        lambda image: (augment.finetune_view(image, (1, 2), SIZE), augment.preprocess_for_eval(image, SIZE))
    )
    finetune, evaluation = next(iter(dataset))
    np.testing.assert_array_equal(finetune, augment.finetune_view(PHOTO, (1, 2), SIZE))
    np.testing.assert_array_equal(evaluation, augment.preprocess_for_eval(PHOTO, SIZE))
    assert finetune.shape == evaluation.shape == (SIZE, SIZE, 3)


def test_evaluation_without_crop():
    resized = augment.preprocess_for_eval(PHOTO, SIZE, crop=False)
    assert resized.shape == (SIZE, SIZE, 3)
    same = augment.preprocess_for_eval(PHOTO[:40, :40], 40, crop=False)
    np.testing.assert_array_equal(same, tf.image.convert_image_dtype(PHOTO[:40, :40], tf.float32))


# --- Crop and flip ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crops_of_a_ramp():
    """Both crops of N seeds from an image whose red grows to the right and green downwards, and their draws.

    A crop's mean then is its centre, its slope its size.
    """
    y, x = np.meshgrid((np.arange(60) + 0.5) / 60, (np.arange(80) + 0.5) / 80, indexing="ij")
    ramp = tf.constant(np.stack([x, y, 0 * x], axis=-1), tf.float32)
    dataset = tf.data.Dataset.range(N).map(lambda i: augment.crop_two_views(ramp, tf.stack([7, i]), 8)).batch(N)
    crops, rows = next(iter(dataset))
    crops = crops.numpy()
    centers = crops[..., :2].mean(axis=(2, 3))  # [N, 2, 2]
    width = (crops[..., 5, 0] - crops[..., 2, 0]).mean(axis=2) / 3 * 8  # [N, 2]; negative where flipped
    height = (crops[:, :, 5, :, 1] - crops[:, :, 2, :, 1]).mean(axis=2) / 3 * 8
    return np.concatenate([centers, np.abs(width)[..., None], height[..., None]], axis=2), width < 0, rows.numpy()


def test_half_of_the_views_are_flipped(crops_of_a_ramp):
    _, flipped, _ = crops_of_a_ramp
    assert is_share(flipped.ravel(), 0.5)


def test_every_random_decision_is_independent(crops_of_a_ramp):
    """Of each other and between the views: no correlation beyond chance. (A box's own numbers hang together.)"""
    boxes, flipped, rows = crops_of_a_ramp
    decisions = np.concatenate([boxes, flipped[..., None], rows], axis=2)  # [N, 2, decisions]
    num = decisions.shape[2]
    correlation = np.corrcoef(decisions.reshape(N, 2 * num), rowvar=False)
    own = np.zeros([2, num, 2, num], bool)
    own[0, :4, 0, :4] = own[1, :4, 1, :4] = True
    own = own.reshape(2 * num, 2 * num) | np.eye(2 * num, dtype=bool)
    assert np.max(np.abs(correlation[~own])) < 4.5 / np.sqrt(N)


def test_draws_are_uniform(crops_of_a_ramp):
    *_, rows = crops_of_a_ramp
    assert max(ks_to_uniform(column, 0, 1) for column in rows.reshape(2 * N, -1).T) < 2.2


def test_finetune_view_crops_and_flips_only():
    """Black on the left and white on the right stay so or change sides: no colour operation, no blur."""
    columns = np.where(np.arange(64) < 40, 0, 255).astype(np.uint8)
    image = tf.constant(np.broadcast_to(columns[None, :, None], [64, 64, 3]))
    dataset = tf.data.Dataset.range(512).map(lambda i: augment.finetune_view(image, tf.stack([i, 0]), SIZE)).batch(512)
    views = next(iter(dataset)).numpy()
    columns = views.mean(axis=1)[..., 0]
    np.testing.assert_allclose(views, views[:, :1, :, :1] * np.ones([1, SIZE, 1, 3]), rtol=0, atol=1e-6)
    both = (columns.min(axis=1) == 0) & (columns.max(axis=1) > 0.999)
    assert both.sum() > 200
    assert is_share(columns[both, 0] > columns[both, -1], 0.5)


def test_an_image_no_box_fits_is_taken_whole():
    np.testing.assert_array_equal(augment.random_crop_box(4, 400, (1, 2)), [0, 0, 4, 400])


# --- Colours ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_factors_of_the_jitter(strength):
    """On a dark and pale plain colour nothing clips and contrast does nothing: HSV shows the other factors."""
    color = np.array([0.3, 0.25, 0.2], np.float32)
    views = augment.distort(plain(color), draws(grayscale=1), strength, blur=False)[:, 0, 0]
    hsv, start = tf.image.rgb_to_hsv(views).numpy(), tf.image.rgb_to_hsv(color).numpy()
    turn = (hsv[:, 0] - start[0] + 0.5) % 1 - 0.5
    jittered = np.max(np.abs(views - color), axis=1) > 1e-6
    assert is_share(jittered, 0.8)
    width = 0.8 * strength
    assert ks_to_uniform(turn[jittered], -0.2 * strength, 0.2 * strength) < 1.95
    assert ks_to_uniform(hsv[jittered, 1] / start[1], 1 - width, 1 + width) < 1.95
    assert ks_to_uniform(hsv[jittered, 2] / start[2], 1 - width, 1 + width) < 1.95


def test_factor_of_contrast():
    """On two dark grays only brightness and contrast act; the grays' distance over their sum is contrast's part."""
    image = plain(0.3).copy()
    image[:, ::2] = 0.4
    views = augment.distort(image, draws(jitter=0, grayscale=1), 1.0, blur=False).numpy()[:, :2, 0, 0]
    factor = (views[:, 0] - views[:, 1]) / (views[:, 0] + views[:, 1]) * 7
    assert ks_to_uniform(factor, 0.2, 1.8) < 1.95


def test_brightness_of_v1_is_added():
    views = augment.distort(plain(0.5), draws(jitter=0, grayscale=1), 0.5, False, "simclrv1").numpy()[:, 0, 0, 0]
    assert ks_to_uniform(views, 0.1, 0.9) < 1.95


@pytest.mark.parametrize("impl", ["simclrv1", "simclrv2"])
def test_every_order_of_the_jitter(impl):
    """The 24 orders against TensorFlow's own operations one after another, clipped after each."""
    orders = np.array(list(itertools.permutations(range(4))))
    photo = rng.uniform(size=[SIZE, SIZE, 3]).astype(np.float32)
    factors = {"brightness": 0.9, "contrast": 0.8, "saturation": 0.9, "hue": 0.7}  # draws
    keys = np.argsort(orders, axis=1) / 4  # the operation that comes first has the smallest
    rows = draws(n=24, jitter=0, grayscale=1, order=keys, **factors)
    views = augment.distort(np.stack([photo] * 24), rows, 1.0, False, impl)
    operations = [
        (lambda x: x + 0.8 * 0.8) if impl == "simclrv1" else (lambda x: x * (0.2 + 1.6 * 0.9)),
        lambda x: tf.image.adjust_contrast(x, 0.2 + 1.6 * 0.8),
        lambda x: tf.image.adjust_saturation(x, 0.2 + 1.6 * 0.9),
        lambda x: tf.image.adjust_hue(x, 0.4 * 0.7 - 0.2),
    ]
    for order, view in zip(orders, views, strict=True):
        expected = photo
        for operation in order:
            expected = np.clip(operations[operation](expected), 0, 1)
        np.testing.assert_allclose(view, expected, rtol=0, atol=1e-5)


def test_a_fifth_is_gray():
    views = augment.distort(plain([0.8, 0.4, 0.2]), draws(jitter=1), 1.0, blur=False).numpy()[:, 0, 0]
    gray = views.max(axis=1) - views.min(axis=1) < 1e-6
    assert is_share(gray, 0.2)
    np.testing.assert_allclose(views[gray], 0.2989 * 0.8 + 0.5870 * 0.4 + 0.1140 * 0.2, rtol=1e-5)
    np.testing.assert_array_equal(views[~gray], plain([0.8, 0.4, 0.2], (~gray).sum())[:, 0, 0])


def test_strength_zero_leaves_colours_alone():
    crops = rng.uniform(-0.1, 1.1, size=[64, SIZE, SIZE, 3]).astype(np.float32)
    np.testing.assert_array_equal(augment.distort(crops, draws(n=64), 0.0, blur=False), np.clip(crops, 0, 1))


# --- Blur ------------------------------------------------------------------------------------------------------------


def test_half_of_the_views_are_blurred_with_uniform_sigma():
    """A line of light one pixel wide: the light beside it over the light on it is exp(-1 / (2 sigma^2))."""
    image = plain(0.0).copy()
    image[:, :, 16] = 1
    views = augment.distort(image, draws(), 0.0, blur=True).numpy()[:, 16, :, 0]
    blurred = views[:, 17] > 0
    assert is_share(blurred, 0.5)
    sigma = np.sqrt(-0.5 / np.log(views[blurred, 17] / views[blurred, 16]))
    assert ks_to_uniform(sigma, 0.1, 2.0) < 1.95


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [[8, 8], [8, 8, 1], [8, 8, 4], [1, 8, 8, 3]])
@pytest.mark.parametrize("function", [augment.two_views, augment.finetune_view])
def test_wrong_shape_is_named(function, shape):
    with pytest.raises(ValueError, match=r"\[height, width, 3\].*Received: \(.*8"):
        function(np.zeros(shape, np.float32), (0, 1), 8)
    with pytest.raises(ValueError, match=r"\[height, width, 3\]"):
        augment.preprocess_for_eval(np.zeros(shape, np.float32), 8)


def test_wrong_values_are_named():
    image = np.zeros([8, 8, 3], np.float32)
    with pytest.raises(ValueError, match=r"uint8.*Received: int32"):
        augment.two_views(image.astype(np.int32), (0, 1), 8)
    with pytest.raises(ValueError, match=r"color_jitter_strength.*Received: 1.3"):
        augment.two_views(image, (0, 1), 8, color_jitter_strength=1.3)
    with pytest.raises(ValueError, match=r"color_jitter_impl.*Received: 'simclrv3'"):
        augment.two_views(image, (0, 1), 8, color_jitter_impl="simclrv3")
    with pytest.raises(ValueError, match=r"seed.*Received: .3"):
        augment.two_views(image, (0, 1, 2), 8)
