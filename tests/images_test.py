"""Every kind of image file becomes a valid uint8 [H, W, 3]."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from simclr_tf import images
from simclr_tf.errors import DataError


def encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def photo(height=24, width=40) -> Image.Image:
    """A smooth colour picture whose four corners differ, so that turning it shows."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([255 * x / width, 255 * y / height, 255 * (x + y) / (width + height)], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def decode_in_tf_data(data: bytes) -> np.ndarray:
    return next(tf.data.Dataset.from_tensors(data).map(images.decode).as_numpy_iterator())


ODD_FORMATS = {
    "gray jpeg": encode(photo().convert("L"), "JPEG"),
    "cmyk jpeg": encode(photo().convert("CMYK"), "JPEG", quality=95),
    "progressive jpeg": encode(photo(), "JPEG", progressive=True),
    "gray png": encode(photo().convert("L"), "PNG"),
    "bilevel png": encode(photo().convert("1"), "PNG"),
    "palette png": encode(photo().quantize(64), "PNG"),
    "palette png, transparent colour": encode(photo().quantize(64), "PNG", transparency=3),
    "palette png, alpha table": encode(photo().quantize(64), "PNG", transparency=bytes(range(64))),
    "alpha png": encode(photo().convert("RGBA"), "PNG"),
    "gray alpha png": encode(photo().convert("LA"), "PNG"),
    "gif": encode(photo(), "GIF"),
    "animated gif": encode(photo(), "GIF", save_all=True, append_images=[photo().rotate(180)]),
    "animated webp": encode(photo(), "WEBP", save_all=True, append_images=[photo().rotate(180)]),
    "webp": encode(photo(), "WEBP", quality=95),
    "bmp": encode(photo(), "BMP"),
    "tiff": encode(photo(), "TIFF"),
    "lab tiff": encode(photo().convert("LAB"), "TIFF"),
    "float tiff": encode(Image.fromarray(np.asarray(photo().convert("L"), np.float32) / 255), "TIFF"),
}


@pytest.mark.parametrize("name", ODD_FORMATS)
def test_odd_formats_show_the_same_picture(name):
    image = decode_in_tf_data(ODD_FORMATS[name])
    assert image.shape == (24, 40, 3) and image.dtype == np.uint8
    expected = np.asarray(photo(), np.float32)
    if "transparent" in name or "alpha table" in name or "bilevel" in name:
        return  # looks different on purpose; what transparency becomes is tested below
    if "gray" in name or "float" in name:
        expected = np.asarray(photo().convert("L"), np.float32)[..., None]
    assert np.abs(image - expected).mean() < 8


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3000)])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF"])
def test_tiny_and_long_images(size, format):
    assert decode_in_tf_data(encode(photo(*size), format)).shape == (*size, 3)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bits_keep_their_upper_byte(format):
    values = np.array([[0, 255, 256], [32768, 65280, 65535]], np.uint16)
    image = decode_in_tf_data(encode(Image.fromarray(values), format))
    np.testing.assert_array_equal(image, np.repeat((values >> 8)[..., None], 3, -1))


def test_transparent_pixels_are_white():
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0, 3] = 255  # opaque black; the others are transparent black
    image = decode_in_tf_data(encode(Image.fromarray(pixels), "PNG"))
    assert image[0, 0].tolist() == [0, 0, 0] and image[1, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("endian", ["<", ">"])
def test_exif_orientation(orientation, endian):
    exif = Image.Exif()
    exif.endian = endian
    exif[0x0112] = orientation
    turns = [
        lambda x: x, lambda x: x[:, ::-1], lambda x: x[::-1, ::-1], lambda x: x[::-1],
        lambda x: x.swapaxes(0, 1), lambda x: np.rot90(x, 3), lambda x: x[::-1, ::-1].swapaxes(0, 1), np.rot90,
    ]  # fmt: skip
    expected = turns[orientation - 1](np.asarray(photo(), np.int32))
    for options in (dict(format="JPEG", quality=98), dict(format="PNG")):
        image = decode_in_tf_data(encode(photo(), exif=exif.tobytes(), **options))
        assert image.shape == expected.shape
        assert np.abs(image - expected).mean() < 3


def test_exif_without_orientation_stays_on_the_fast_path():
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    data = encode(photo(), "JPEG", exif=exif)
    np.testing.assert_array_equal(images.decode(data), tf.io.decode_jpeg(data, channels=3))


@pytest.mark.parametrize(
    "data", [encode(photo(), "JPEG"), encode(photo().convert("L"), "JPEG"), encode(photo(), "PNG"),
             encode(photo().convert("L"), "PNG")],
)
def test_plain_files_decode_as_tensorflow_does(data, monkeypatch):
    monkeypatch.setattr(images, "decode_with_pillow", lambda data: 1 / 0)
    np.testing.assert_array_equal(decode_in_tf_data(data), tf.io.decode_image(data, channels=3))


def huge_png() -> bytes:
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\x00\x00\x00\x00IDAT\x35\xaf\x06\x1e"


def huge_jpeg() -> bytes:
    data = bytearray(encode(photo(), "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", 30000, 30000)
    return bytes(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("data", [huge_png(), huge_jpeg()], ids=["png", "jpeg"])
def test_huge_images_are_refused_from_their_header(data):
    with pytest.raises(tf.errors.OpError, match="too large"):
        decode_in_tf_data(data)


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"not an image at all", encode(photo(), "JPEG")[:300], encode(photo(), "JPEG")[:3],
     encode(photo(), "PNG")[:20], encode(photo(), "PNG")[:80], encode(photo(), "GIF")[:30]],
    ids=["empty", "one byte", "text", "cut jpeg", "3 bytes of jpeg", "png header", "cut png", "cut gif"],
)  # fmt: skip
def test_broken_images_fail(data):
    with pytest.raises(tf.errors.OpError):
        decode_in_tf_data(data)
    with pytest.raises(DataError):
        images.decode_with_pillow(data)
