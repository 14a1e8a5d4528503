"""Image files: what each rule makes of a few pixels, and what is said of files that are none."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedcollm.errors import UserError
from fedcollm.modalities.vision import images
from fedcollm.modalities.vision.images import RULES, SUFFIXES, decode, fingerprint, noted

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def stored(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels(data: bytes) -> tuple[list, tuple[str, ...]]:
    """Rows of pixels, and the rules that were applied."""
    image, rules = decode(data, "x")
    assert image.mode == "RGB"
    return np.asarray(image).tolist(), rules


def row(*colours, mode: str = "RGB") -> Image.Image:
    image = Image.new(mode, (len(colours), 1))
    image.putdata(colours)
    return image


def test_rgb_stays_as_it_is():
    assert pixels(stored(row(RED, GREEN))) == ([[[255, 0, 0], [0, 255, 0]]], ())


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [[[255, 0, 0], [0, 255, 0]]]),
        (3, [[[0, 255, 0], [255, 0, 0]]]),  # upside down
        (6, [[[255, 0, 0]], [[0, 255, 0]]]),  # a quarter clockwise: the left pixel comes to the top
        (8, [[[0, 255, 0]], [[255, 0, 0]]]),
    ],
)
def test_exif_rotation_is_applied(orientation, expected):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = stored(row(RED, GREEN), exif=exif)
    assert pixels(data) == (expected, ("rotated",) if orientation > 1 else ())


def test_gray_and_bilevel_are_converted():
    assert pixels(stored(row(0, 100, mode="L"))) == ([[[0, 0, 0], [100, 100, 100]]], ("converted",))
    assert pixels(stored(row(0, 255, mode="1"))) == ([[[0, 0, 0], [255, 255, 255]]], ("converted",))


def test_palette_is_looked_up():
    image = row(1, 0, mode="P")
    image.putpalette([*RED, *BLUE])
    assert pixels(stored(image)) == ([[[0, 0, 255], [255, 0, 0]]], ("converted",))


def test_transparent_pixels_are_put_on_white():
    data = stored(row((255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 51), mode="RGBA"))
    # 51 / 255 is a fifth of black on white: 204
    assert pixels(data) == ([[[255, 0, 0], [255, 255, 255], [204, 204, 204]]], ("on_white",))
    assert pixels(stored(row((9, 255), (9, 0), mode="LA"))) == ([[[9, 9, 9], [255, 255, 255]]], ("on_white",))
    palette = row(1, 0, mode="P")
    palette.putpalette([*RED, *BLUE])
    assert pixels(stored(palette, transparency=1)) == ([[[255, 255, 255], [255, 0, 0]]], ("on_white",))


def test_cmyk_is_converted():
    # without ink white, with all of the cyan no red
    image, rules = decode(stored(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "TIFF"), "x")
    assert (image.getpixel((0, 0)), rules) == ((0, 255, 255), ("converted",))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_become_eight(format):
    # 257 steps of 16 bits are one of 8: 128 is 0.498 of one, 129 is 0.502
    image = Image.fromarray(np.array([[0, 128, 129, 257, 65535]], dtype=np.uint16))
    assert pixels(stored(image, format)) == ([[[value] * 3 for value in (0, 0, 1, 1, 255)]], ("from_16_bits",))


def test_values_without_a_known_range_are_refused():
    with pytest.raises(UserError, match=r"x: can't be read .*floating-point"):
        decode(stored(row(0.5, 1.5, mode="F"), "TIFF"), "x")
    with pytest.raises(UserError, match=r"x: can't be read .*0 and 65535"):
        decode(stored(row(-1, 5, mode="I"), "TIFF"), "x")


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF"])
def test_animation_gives_its_first_frame(format):
    options = {"lossless": True} if format == "WEBP" else {}
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN)]
    image, rules = decode(stored(frames[0], format, save_all=True, append_images=frames[1:], **options), "x")
    assert image.getpixel((0, 0)) == RED
    assert "first_frame" in rules


def test_file_on_disk_is_read_like_its_content(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(stored(row(RED)))
    assert decode(tmp_path / "a.png", "a").image.getpixel((0, 0)) == RED


# --- what is refused ---


def png_that_claims(width: int, height: int) -> bytes:
    """The first chunks of a PNG: a few bytes that name any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height", "said"), [(8001, 8000, "8001 x 8000"), (10**5, 10**5, "more than 64,000,000")]
)
def test_bomb_is_refused_before_it_is_decoded(width, height, said):
    with pytest.raises(UserError, match=f"bomb.png: the image has {said} pixels, and at most 64,000,000"):
        decode(png_that_claims(width, height), "bomb.png")


def test_as_many_pixels_as_allowed_are_read(monkeypatch):
    monkeypatch.setattr(images, "MOST_PIXELS", 2)
    assert decode(stored(row(RED, BLUE)), "x").image.size == (2, 1)
    with pytest.raises(UserError, match="3 x 1 pixels, and at most 2"):
        decode(stored(row(RED, BLUE, BLUE)), "x")


def noise(format: str) -> bytes:
    values = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    return stored(Image.fromarray(values), format)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
def test_truncated_file_is_named(format):
    data = noise(format)
    assert decode(data, "x").image.size == (32, 32)
    with pytest.raises(UserError, match=r"cut.img: can't be read as an image .*Replace it by a complete image"):
        decode(data[: len(data) // 2], "cut.img")


def test_empty_file_and_text_are_named(tmp_path: Path):
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match=r"a.png: can't be read as an image \(the file is empty\)"):
        decode(tmp_path / "a.png", "a.png")
    with pytest.raises(UserError, match=r"x: can't be read as an image \(the file is empty\)"):
        decode(b"", "x")
    with pytest.raises(UserError, match=r"b.png: can't be read as an image \(cannot identify"):
        decode(b"hello", "b.png")
    with pytest.raises(UserError, match=r"c.png: can't be read as an image .*No such file"):
        decode(tmp_path / "c.png", "c.png")


def test_formats_that_start_other_programs_are_not_read():
    with pytest.raises(UserError, match=r"x: can't be read as an image"):
        decode(stored(row(RED), "EPS"), "x")


# --- what tells images apart, and notes ---


def test_fingerprint_is_that_of_the_pixels_not_of_the_file():
    one, other = (decode(stored(row(RED, GREEN), format), "x").image for format in ("PNG", "BMP"))
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one) != fingerprint(row(RED, BLUE))
    assert fingerprint(row(RED, RED)) != fingerprint(row(RED, RED).resize((1, 2)))  # the same bytes


def test_notes_count_the_images_of_each_rule():
    assert noted({}) == []
    assert noted({"on_white": {"a"}, "rotated": {"a", "b"}}) == [
        "2 images were turned as their EXIF data says",
        "1 images have transparent pixels, which were put on white",
    ]
    assert set(RULES) == {"first_frame", "rotated", "on_white", "converted", "from_16_bits"}
    assert {".jpg", ".png"} <= set(SUFFIXES)


def test_thin_images_are_refused_with_their_name_and_size():
    assert images.MOST_RATIO == 100
    assert decode(stored(Image.new("L", (1, 100))), "x").image.size == (1, 100)
    for width, height in ((1, 101), (30_000, 1), (2, 201)):
        with pytest.raises(UserError, match=rf"thin.png: the image has {width} x {height} pixels, .*at most 100 times"):
            decode(stored(Image.new("L", (width, height))), "thin.png")
