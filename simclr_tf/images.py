"""Bytes of an image file -> uint8 [H, W, 3], whatever the file is.

Plain JPEG and PNG files, which is nearly every file of nearly every data set, are decoded by TensorFlow's ops inside
the graph. What those ops would decode wrongly (turned by Exif, CMYK, palette, alpha, 16 bits) or not at all goes to
Pillow, through one `tf.numpy_function`.
"""

import io

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps, UnidentifiedImageError

from simclr_tf.errors import DataError

# Pillow's own limit against decompression bombs, about 179 million pixels: half a gigabyte when decoded.
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS

_HEAD_BYTES = 65536  # orientation is looked for here: a JPEG's Exif block is at most this long and comes first

_JPEG = b"\xff\xd8\xff"
# Regular expressions over bytes: \C is any one byte. (Bytes above 0x7f cannot be written: they are taken as UTF-8.)
# An orientation tag (0x0112, one SHORT) of 2..8, little or big endian, or its XMP form. A false alarm costs time only.
_TURNED_JPEG = (
    r"\C*(?:Exif\x00\x00\C*(?:\x12\x01\x03\x00\x01\x00\x00\x00[\x02-\x08]\x00|\x01\x12\x00\x03\x00\x00\x00\x01\x00[\x02-\x08])"
    r"|tiff:Orientation)\C*"
)
# IHDR with 8 bits a channel, grayscale or RGB, and no chunk that turns, animates or makes transparent.
_PNG = r"\CPNG\r\n\x1a\n\x00\x00\x00\rIHDR\C{8}\x08[\x00\x02]\C*"
_SPECIAL_PNG = r"\C*(?:eXIf|tRNS|acTL|tiff:Orientation)\C*"


def decode(data: tf.Tensor) -> tf.Tensor:
    """Decodes one image; works eagerly and in `tf.data`.

    Args:
      data: string [], the bytes of an image file in any format Pillow reads.

    Returns:
      uint8 [H, W, 3], 0..255, upright. See `decode_with_pillow` for what becomes of the odd formats; plain JPEG and
      PNG files give exactly what `tf.io.decode_image(data, channels=3)` gives.

    Raises:
      tf.errors.OpError: the bytes are not a whole image of a sane size (eagerly also DataError).
    """
    head = tf.strings.substr(data, 0, _HEAD_BYTES)

    def matches(pattern: str) -> tf.Tensor:
        return tf.strings.regex_full_match(head, pattern)

    def pillow():
        return tf.numpy_function(_decode_object, [data], tf.uint8)

    def jpeg():
        height, width, channels = tf.unstack(tf.cast(tf.io.extract_jpeg_shape(data), tf.int64))
        plain = ((channels == 1) | (channels == 3)) & (height * width <= MAX_PIXELS)
        return tf.cond(plain, lambda: tf.io.decode_jpeg(data, channels=3), pillow)

    def png():
        size = tf.io.decode_raw(tf.strings.substr(data, 16, 8), tf.int32, little_endian=False)
        height, width = tf.unstack(tf.cast(tf.ensure_shape(size, [2]), tf.int64))
        return tf.cond(height * width <= MAX_PIXELS, lambda: tf.io.decode_png(data, channels=3), pillow)

    is_jpeg = (tf.strings.substr(data, 0, len(_JPEG)) == _JPEG) & ~matches(_TURNED_JPEG)
    is_png = matches(_PNG) & ~matches(_SPECIAL_PNG)
    image = tf.cond(is_jpeg, jpeg, lambda: tf.cond(is_png, png, pillow))
    return tf.ensure_shape(image, [None, None, 3])


def decode_with_pillow(data: bytes) -> np.ndarray:
    """Decodes the bytes of an image file with Pillow.

    Exif orientation is applied; transparent pixels are laid over white, as on a page; of an animation the first frame
    is taken; 16-bit channels keep their upper 8 bits; floating-point images are taken as 0..1 when they fit into that
    and as 0..255 otherwise.

    Returns:
      uint8 [H, W, 3], 0..255.

    Raises:
      DataError: it is not an image, not a whole one, or one of more than MAX_PIXELS pixels.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(_too_large(f"{image.width} x {image.height}"))
            image = ImageOps.exif_transpose(image)
            return _rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(_too_large(str(error))) from error
    except UnidentifiedImageError as error:
        start = f"starts with {data[:8]!r}" if data else "is empty"
        raise DataError(f"not an image in a known format (it {start})") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, AttributeError) as error:
        # The last ones are what Pillow's parsers of damaged files end in.
        raise DataError(f"damaged image ({error})") from error


@tf.autograph.experimental.do_not_convert
def _decode_object(data: bytes | np.ndarray) -> np.ndarray:
    """`numpy_function` passes bytes in a graph and an array of one object eagerly."""
    return decode_with_pillow(data if isinstance(data, bytes) else data.item())


def _too_large(size: str) -> str:
    return f"too large: {size}, at most {MAX_PIXELS} pixels can be decoded; shrink it"


def _rgb(image: Image.Image) -> np.ndarray:
    """The pixels of a Pillow image of any mode as uint8 [H, W, 3]."""
    if image.mode.startswith("I;16"):
        return _gray(np.asarray(image) >> 8)
    if image.mode == "I":  # 32 bits; files that open so hold 16 of them
        pixels = np.asarray(image)
        return _gray(np.clip(pixels >> 8 if pixels.max() > 255 else pixels, 0, 255))
    if image.mode == "F":
        pixels = np.nan_to_num(np.asarray(image))
        scale = 255.0 if pixels.min() >= 0 and pixels.max() <= 1 else 1.0
        return _gray(np.clip(np.round(pixels * scale), 0, 255))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _gray(pixels: np.ndarray) -> np.ndarray:
    """[H, W] of 0..255 -> uint8 [H, W, 3]."""
    return np.repeat(pixels.astype(np.uint8)[..., None], 3, axis=-1)
