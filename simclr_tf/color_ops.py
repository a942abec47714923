"""Operations on an image's pixels: brightness, contrast, saturation, hue, gray, Gaussian blur. Nothing here is random.

Written on separate colour planes: arithmetic across channels then runs along contiguous memory. None of them clips.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

LUMA = (0.2989, 0.5870, 0.1140)  # weights of red, green and blue in gray
TINY = 1e-20  # keeps quotients finite; far below one grey level's square

Planes = list[tf.Tensor]  # red, green, blue: [..., H, W] each


def on_image(op: Callable[..., Planes]) -> Callable[..., tf.Tensor]:
    """`op(planes, *values)` as `op(image, *values)`, image [..., H, W, 3], values [...] or scalars."""

    def image_op(image, *values):
        values = [tf.convert_to_tensor(value, tf.float32)[..., None, None] for value in values]
        return tf.stack(op(tf.unstack(tf.convert_to_tensor(image), axis=-1), *values), axis=-1)

    image_op.__name__, image_op.__doc__, image_op.planes = op.__name__, op.__doc__, op
    return image_op


@on_image
def brightness_multiply(planes: Planes, factor) -> Planes:
    """SimCLRv2's brightness: times `factor` >= 0."""
    return [plane * factor for plane in planes]


@on_image
def brightness_add(planes: Planes, delta) -> Planes:
    """SimCLRv1's brightness: plus `delta`, -1..1."""
    return [plane + delta for plane in planes]


@on_image
def contrast(planes: Planes, factor) -> Planes:
    """Scales the distance of each channel from its mean over the image by `factor` >= 0."""
    means = [tf.reduce_mean(plane, axis=[-2, -1], keepdims=True) for plane in planes]
    return [mean + (plane - mean) * factor for plane, mean in zip(planes, means, strict=True)]


@on_image
def saturation(planes: Planes, factor) -> Planes:
    """Multiplies HSV's saturation by `factor` >= 0, at most to 1; hue and value stay.

    With value v = max and saturation s = (max - min) / max, every channel c becomes v + (c - v) min(factor, 1 / s).
    """
    high, low = _extremes(planes)
    value = tf.maximum(high, TINY)
    scale = value / tf.maximum(high - low, value * (1 / factor))  # one division a pixel; 1 / 0 is infinite: scale 0
    return [high + (plane - high) * scale for plane in planes]


@on_image
def hue(planes: Planes, delta) -> Planes:
    """Turns HSV's hue by `delta`, in turns of the colour circle (1 is all the way round); saturation and value stay.

    A channel is highest where the hue is its own (0, 1/3, 2/3), falls off over the second sixth of a turn on either
    side and is lowest beyond.
    """
    red, green, blue = planes
    high, low = _extremes(planes)
    chroma = high - low
    # The hue in sixths of a turn times chroma, so that nothing has to be divided by it; -4..8 of them.
    turned = tf.where(
        red == high, green - blue, tf.where(green == high, blue - red + 2 * chroma, red - green + 4 * chroma)
    )
    turned += 6 * (delta - tf.round(delta)) * chroma
    distances = [tf.abs(turned - own * chroma) for own in (0, 2, 4)]
    distances = [tf.minimum(distance, tf.abs(6 * chroma - distance)) for distance in distances]  # either way round
    return [low + tf.clip_by_value(2 * chroma - distance, 0, chroma) for distance in distances]


@on_image
def grayscale(planes: Planes) -> Planes:
    """Luma in all three channels."""
    return [sum(weight * plane for weight, plane in zip(LUMA, planes, strict=True))] * 3


def _extremes(planes):
    red, green, blue = planes
    return tf.maximum(red, tf.maximum(green, blue)), tf.minimum(red, tf.minimum(green, blue))


def gaussian_blur(image: tf.Tensor, kernel_size: int, sigma) -> tf.Tensor:
    """Blurs images [..., H, W, 3] with a Gaussian of `sigma` > 0 pixels ([...] or a scalar) cut off at
    kernel_size // 2 pixels (so an even size means the next odd one) and normalised; zeros lie beyond the border."""
    sigma = tf.convert_to_tensor(sigma, tf.float32)[..., None, None]
    planes = [blur_plane(plane, kernel_size, sigma) for plane in tf.unstack(tf.convert_to_tensor(image), axis=-1)]
    return tf.stack(planes, axis=-1)


def blur_plane(plane, kernel_size, sigma):
    """plane [..., H, W], sigma [..., 1, 1]."""
    radius = kernel_size // 2
    weights = tf.exp(-np.square(np.arange(-radius, radius + 1, dtype=np.float32)) / (2 * tf.square(sigma)))
    weights /= tf.reduce_sum(weights, axis=-1, keepdims=True)  # [..., 1, 2 radius + 1]
    for axis in (-1, -2):
        length = plane.shape[axis]
        paddings = np.zeros([plane.shape.rank, 2], int)
        paddings[axis] = radius
        padded = tf.pad(plane, paddings)
        plane = 0.0
        for k in range(2 * radius + 1):
            shifted = padded[..., k : k + length] if axis == -1 else padded[..., k : k + length, :]
            plane += weights[..., k : k + 1] * shifted
    return plane


def clip(planes: Planes) -> Planes:
    """To [0, 1]."""
    return [tf.clip_by_value(plane, 0, 1) for plane in planes]
