"""What an image becomes before the network sees it: two random views, one fine-tuning view, or the evaluation crop.

Every function is pure: the same image and seed give the same pixels, eagerly, in `tf.data` and after a resume.

The two views are made in two stages, so that a pipeline may run the second one on whole batches, where it is fastest:
`crop_two_views` works on one image of any size, `distort` on many views of one size. `two_views` is both for one image.
Source of probabilities, ranges and order: SimCLR (arXiv 2002.05709) appendix A, SimCLRv2's code for the brightness.
"""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from simclr_tf import color_ops
from simclr_tf.color_ops import Planes, clip

EVAL_CROP_PROPORTION = 0.875  # of the image's shorter side
CROP_AREA = (0.08, 1.0)  # of the image's area
CROP_ASPECT = (3 / 4, 4 / 3)  # width / height, relative to the view's own
CROP_MIN_COVERED = 0.1  # of the whole image: so no crop is smaller than a tenth, whatever CROP_AREA says
CROP_ATTEMPTS = 100  # then the whole image
FLIP_PROBABILITY = 0.5
JITTER_PROBABILITY = 0.8
JITTER_RANGE = 0.8  # of brightness, contrast and saturation, at strength 1
JITTER_HUE_RANGE = 0.2  # of hue, in turns of the colour circle, at strength 1
GRAYSCALE_PROBABILITY = 0.2
BLUR_PROBABILITY = 0.5
BLUR_SIGMA = (0.1, 2.0)  # pixels
BLUR_KERNEL_SHARE = 10  # the kernel is image_size // 10 pixels wide
MAX_STRENGTH = 1.25  # above, the lower bound of contrast and saturation, 1 - 0.8 strength, is negative


# --- Training views --------------------------------------------------------------------------------------------------


class Draw(NamedTuple):
    """One view's random numbers: float32, uniform in [0, 1) and independent."""

    jitter: tf.Tensor
    brightness: tf.Tensor
    contrast: tf.Tensor
    saturation: tf.Tensor
    hue: tf.Tensor
    order: tf.Tensor  # [4]: the jitter's operations come in the order of these
    grayscale: tf.Tensor
    blur: tf.Tensor
    sigma: tf.Tensor


DRAW_SIZES = [4 if name == "order" else 1 for name in Draw._fields]
NUM_DRAWS = sum(DRAW_SIZES)


def two_views(
    image: tf.Tensor,
    seed: tf.Tensor,
    image_size: int,
    color_jitter_strength: float = 1.0,
    blur: bool = True,
    color_jitter_impl: str = "simclrv2",
) -> tuple[tf.Tensor, tf.Tensor]:
    """Two independent random views of one image.

    Args:
        image: [H, W, 3], uint8 0..255 or float 0..1.
        seed: int [2]; decides everything that is random.
        image_size: height and width of the views, in pixels.
        color_jitter_strength: 0 (no colour distortion, no grayscale) to 1.25.
        blur: whether half of the views are blurred.
        color_jitter_impl: "simclrv2" (multiplicative brightness) or "simclrv1" (additive).

    Returns:
        Two float32 [image_size, image_size, 3] in [0, 1].

    Raises:
        ValueError: a rank, channel count, dtype, strength or implementation is none of these.
    """
    crops, draws = crop_two_views(image, seed, image_size)
    views = distort(crops, draws, color_jitter_strength, blur, color_jitter_impl)
    return views[0], views[1]


def crop_two_views(image: tf.Tensor, seed: tf.Tensor, image_size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """First stage of `two_views`, arguments as there: two random crops of one image, each flipped or not, and what
    `distort` needs.

    Returns:
        crops: float32 [2, image_size, image_size, 3]; bicubic resizing may leave [0, 1] a little.
        draws: float32 [2, NUM_DRAWS], one row a view.
    """
    crops, draws, white = crops_apart(image, seed, image_size)
    return tf.stack(crops) * (1 / white), draws


def crops_apart(image: tf.Tensor, seed: tf.Tensor, image_size: int) -> tuple[list[tf.Tensor], tf.Tensor, float]:
    """`crop_two_views` in fewer passes over the pixels: two crops float32 [image_size, image_size, 3], not scaled to
    0..1; draws [2, NUM_DRAWS]; and what white is in the crops, 255 or 1, for `distort` to scale them in passing."""
    image = _checked(image)
    draw_seed, *crop_seeds = _split(seed, 3)
    draws = tf.random.stateless_uniform([2, 1 + NUM_DRAWS], draw_seed, alg="philox")
    flips, draws = draws[:, 0], draws[:, 1:]
    crops = [_crop_and_flip(image, crop_seeds[view], flips[view], image_size, scaled=False) for view in (0, 1)]
    return crops, draws, 255.0 if image.dtype == tf.uint8 else 1.0


def distort(
    crops: tf.Tensor | Sequence[tf.Tensor],
    draws: tf.Tensor,
    color_jitter_strength: float = 1.0,
    blur: bool = True,
    color_jitter_impl: str = "simclrv2",
    white: float = 1.0,
) -> tf.Tensor:
    """Second stage of `two_views`: colour distortion and blur of n views, each by its own draws.

    Compiled by XLA, which fuses each operation into one pass over the pixels: several times the speed of single
    kernels. It compiles (for about half a second) for every n and S anew; a view's pixels do not depend on n.

    Args:
        crops: float32 [n, S, S, 3], static shape; or k of them, the crops of n images.
        draws: float32 [n, NUM_DRAWS]; with k crops [n, k, NUM_DRAWS].
        color_jitter_strength, blur, color_jitter_impl: as in `two_views`.
        white: what 1 is in `crops`: 255 for crops of a uint8 image that have not been scaled.

    Returns:
        float32 [n, S, S, 3] in [0, 1]; with k crops [n, S, S, 3 k], side by side.
    """
    if not 0 <= color_jitter_strength <= MAX_STRENGTH:
        raise ValueError(f"color_jitter_strength must be 0..{MAX_STRENGTH}. Received: {color_jitter_strength}")
    if color_jitter_impl not in ("simclrv1", "simclrv2"):
        raise ValueError(f"color_jitter_impl must be simclrv1 or simclrv2. Received: {color_jitter_impl!r}")
    crops = tuple(crops) if isinstance(crops, list | tuple) else (crops,)
    draws = tf.reshape(draws, [crops[0].shape[0] * len(crops), NUM_DRAWS])
    return _distort(crops, draws, 1 / white, float(color_jitter_strength), bool(blur), color_jitter_impl)


@tf.function(jit_compile=True, autograph=False)
def _distort(crops, draws, scale, strength, blur, impl):
    together, (n, size) = len(crops), crops[0].shape[:2]
    steps = []
    if strength > 0:
        steps += [lambda planes, draw: random_color_jitter(planes, draw, strength, impl), random_grayscale]
    steps += [lambda planes, draw: clip(planes)]
    if blur:
        steps += [lambda planes, draw: random_blur(planes, draw, size // BLUR_KERNEL_SHARE)]

    def parted(crop):
        return tuple(crop[..., channel] * scale for channel in range(3))  # 6 times faster than transposing

    def distort_one(view_and_row):
        view, row = view_and_row
        branches = [lambda k=k: parted(crops[k][view // together]) for k in range(together)]
        planes = tf.switch_case(view % together, branches)
        draw = Draw(*[part if part.shape[0] > 1 else part[0] for part in tf.split(row, DRAW_SIZES)])
        for step in steps:
            planes = step(planes, draw)
        return tuple(planes)

    plane = tf.TensorSpec([size, size], tf.float32)
    views = tf.map_fn(distort_one, (tf.range(n * together), draws), fn_output_signature=(plane,) * 3)
    # Stacked here, as copies: stacking what is being computed, or along the last axis, takes several times as long.
    views = tf.reshape(tf.stack(views, axis=1), [-1, 3 * together, size, size])
    return tf.transpose(views, [0, 2, 3, 1])


def random_color_jitter(planes: Planes, draw: Draw, strength: float, impl: str) -> Planes:
    """Brightness, contrast, saturation and hue in random order, clipped after each."""
    width, turn = JITTER_RANGE * strength, JITTER_HUE_RANGE * strength
    if impl == "simclrv1":
        brightness, low, high = color_ops.brightness_add, -width, width
    else:
        brightness, low, high = color_ops.brightness_multiply, max(1 - width, 0), 1 + width
    operations = [
        (brightness, _between(draw.brightness, low, high)),
        (color_ops.contrast, _between(draw.contrast, 1 - width, 1 + width)),
        (color_ops.saturation, _between(draw.saturation, 1 - width, 1 + width)),
        (color_ops.hue, _between(draw.hue, -turn, turn)),
    ]
    order = tf.argsort(draw.order)

    def apply(position, *planes):
        branches = [lambda op=op, value=value: tuple(clip(op.planes(planes, value))) for op, value in operations]
        return position + 1, *tf.switch_case(order[position], branches)

    # A loop, because XLA takes 20 s to compile four switches in a row and half a second for one in a loop.
    positions = tf.where(draw.jitter < JITTER_PROBABILITY, len(operations), 0)
    return tf.while_loop(lambda position, *_: position < positions, apply, (0, *planes))[1:]


def random_grayscale(planes: Planes, draw: Draw) -> Planes:
    """Gray for a fifth of the views."""
    gray, *_ = color_ops.grayscale.planes(planes)
    return [tf.where(draw.grayscale < GRAYSCALE_PROBABILITY, gray, plane) for plane in planes]


def random_blur(planes: Planes, draw: Draw, kernel_size: int) -> Planes:
    """Gaussian blur for half of the views.

    Deviation: every view has its own sigma; the reference draws one for a batch, on the device.
    """
    sigma = _between(draw.sigma, *BLUR_SIGMA)[None, None]
    return tf.cond(
        draw.blur < BLUR_PROBABILITY,
        lambda: tuple(clip([color_ops.blur_plane(plane, kernel_size, sigma) for plane in planes])),
        lambda: tuple(planes),
    )


def _between(uniform, low, high):
    return low + uniform * (high - low)


# --- Crops -----------------------------------------------------------------------------------------------------------


def random_crop_box(height: tf.Tensor, width: tf.Tensor, seed: tf.Tensor, aspect: float = 1.0) -> tf.Tensor:
    """A random box of 10 % to all of an image's area whose width / height is 3/4 to 4/3 of `aspect`; the whole image
    where a hundred attempts find none.

    Args:
        height, width: of the image, int scalars.
        seed: int [2].
        aspect: width / height of what the crop is resized to.

    Returns:
        int32 [4]: top, left, height and width of the box, in pixels.
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.stack([height, width, 3]),
        tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed,
        min_object_covered=CROP_MIN_COVERED,
        aspect_ratio_range=(CROP_ASPECT[0] * aspect, CROP_ASPECT[1] * aspect),
        area_range=CROP_AREA,
        max_attempts=CROP_ATTEMPTS,
    )
    return tf.concat([begin[:2], size[:2]], axis=0)


def finetune_view(image: tf.Tensor, seed: tf.Tensor, image_size: int) -> tf.Tensor:
    """Random crop and flip, nothing else. Arguments as in `two_views`; returns one view of that kind."""
    crop_seed, flip_seed = _split(seed, 2)
    flip = tf.random.stateless_uniform([], flip_seed, alg="philox")
    return tf.clip_by_value(_crop_and_flip(_checked(image), crop_seed, flip, image_size), 0, 1)


def preprocess_for_eval(image: tf.Tensor, image_size: int, crop: bool = True) -> tf.Tensor:
    """The central square of 87.5 % of the shorter side, or with `crop=False` the whole image, resized.

    Deviation: without the crop the reference demands the right size; here any size is resized.

    Args:
        image: [H, W, 3], uint8 0..255 or float 0..1.
        image_size: height and width of the result, in pixels.

    Returns:
        float32 [image_size, image_size, 3] in [0, 1].
    """
    image = _checked(image)
    if crop:
        height, width = tf.unstack(tf.shape(image)[:2])
        shorter = tf.cast(tf.minimum(height, width), tf.float32)
        side = tf.cast(tf.math.rint(EVAL_CROP_PROPORTION * shorter), tf.int32)  # halves go to the even neighbour
        top, left = (height - side + 1) // 2, (width - side + 1) // 2
        image = image[top : top + side, left : left + side]
    return tf.clip_by_value(_resize(image, image_size), 0, 1)


def _crop_and_flip(image, crop_seed, flip, image_size, scaled=True):
    """Flipped left to right where `flip`, uniform in [0, 1), says so: before resizing, on fewer bytes."""
    height, width = tf.unstack(tf.shape(image)[:2])
    top, left, height, width = tf.unstack(random_crop_box(height, width, crop_seed))
    crop = image[top : top + height, left : left + width]
    crop = tf.raw_ops.Reverse(tensor=crop, dims=tf.stack([False, flip < FLIP_PROBABILITY, False]))
    return _resize(crop, image_size, scaled)


def _resize(image, image_size, scaled=True):
    """Bicubic, not antialiased; uint8 becomes 0..1 afterwards, which is the same and touches fewer pixels."""
    resized = tf.image.resize(image, [image_size, image_size], method="bicubic")
    return resized * (1 / 255) if scaled and image.dtype == tf.uint8 else resized


def _checked(image):
    image = tf.convert_to_tensor(image)
    if image.shape.rank is not None and (image.shape.rank != 3 or image.shape[2] not in (3, None)):
        raise ValueError(f"An image must have shape [height, width, 3]. Received: {image.shape}")
    if image.dtype != tf.uint8 and not image.dtype.is_floating:
        raise ValueError(f"An image must be uint8 (0..255) or float (0..1). Received: {image.dtype.name}")
    image = tf.ensure_shape(image, [None, None, 3])
    return image if image.dtype == tf.uint8 else tf.cast(image, tf.float32)


def _split(seed, num):
    """`num` independent seeds [2]. Philox everywhere: the same numbers on every device."""
    seed = tf.convert_to_tensor(seed)
    if not seed.shape.is_compatible_with([2]) or not seed.dtype.is_integer:
        raise ValueError(f"A seed must be two integers. Received: {seed.shape} {seed.dtype.name}")
    return tf.unstack(tf.random.split(seed, num, alg="philox"))
