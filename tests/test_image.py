import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from utils.errors import UserError
from utils.image import fit, fit_ratio, padded_hw, probe_image, read_image, reduction


@pytest.fixture
def picture():
    """A smooth picture [40, 64, 3] whose corners all differ."""
    y, x = np.mgrid[0:40, 0:64]
    return np.stack([y * 6, x * 3, (x + y) * 2], axis=-1).astype(np.uint8)


def exif(orientation, order="<"):
    """An EXIF block that holds one entry, the orientation."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return mark + struct.pack(order + "IH", 8, 1) + entry + bytes(4)


def encode(picture, suffix):
    return cv2.imencode(suffix, picture)[1].tobytes()


def with_exif(jpeg, block):
    block = b"Exif\0\0" + block
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]


UPRIGHT = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: p.transpose(1, 0, 2)[:, ::-1],
    7: lambda p: p.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda p: p.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path, picture, orientation, order):
    path = tmp_path / "turned.jpg"
    path.write_bytes(with_exif(encode(picture, ".jpg"), exif(orientation, order)))
    image, expected = read_image(path), UPRIGHT[orientation](picture)
    assert image.shape == expected.shape and probe_image(path) == expected.shape[:2]
    assert np.abs(image.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
def test_every_format_is_read_and_probed(tmp_path, picture, suffix):
    path = tmp_path / f"a picture – ü{suffix}"
    path.write_bytes(encode(picture, suffix))
    image = read_image(path)
    assert image.dtype == np.uint8 and image.shape == picture.shape
    assert probe_image(path) == (40, 64)


def test_grey_and_deep_images_become_bgr_bytes(tmp_path, picture):
    for number, odd in enumerate((picture[..., 0], picture.astype(np.uint16) * 256)):
        path = tmp_path / f"{number}.png"
        path.write_bytes(encode(odd, ".png"))
        assert read_image(path).shape == (40, 64, 3) and read_image(path).dtype == np.uint8


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.1, 0.5, 0.98])
def test_cut_files_are_named(tmp_path, picture, suffix, part):
    content = encode(picture, suffix)
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(content[: int(len(content) * part)])
    for function in (read_image, probe_image):
        with pytest.raises(UserError, match=f"cut{suffix}"):
            function(path)


def test_bytes_after_the_end_are_no_fault(tmp_path, picture):
    path = tmp_path / "long.jpg"
    path.write_bytes(encode(picture, ".jpg") + bytes(10_000))
    assert probe_image(path) == read_image(path).shape[:2]


def test_missing_and_foreign_files_are_named(tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    for name in ("missing.jpg", "text.jpg", "."):
        for function in (read_image, probe_image):
            with pytest.raises(UserError, match=str(tmp_path)):
                function(tmp_path / name)


@pytest.mark.parametrize(
    "size_hw, side, expected",
    [
        ((427, 640), 416, (277, 416)),
        ((640, 427), 480, (480, 320)),
        ((300, 1246), 640, (154, 639)),  # truncated as the published weights expect
        ((1, 500), 20, (1, 20)),
    ],
)
def test_a_square_truncates(size_hw, side, expected):
    picture = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), np.uint8)
    image, scale = fit(picture, (side, side))
    assert image.shape[:2] == expected
    assert scale == (fit_ratio(size_hw, (side, side)),) * 2 == (side / max(size_hw),) * 2
    plain = cv2.resize(picture, expected[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(image, plain)


@pytest.mark.parametrize(
    "size_hw, expected",
    [
        ((480, 640), (800, 1067)),  # 1066.67 is rounded
        ((640, 427), (1199, 800)),  # 1199.06
        ((427, 640), (800, 1199)),
        ((333, 500), (800, 1201)),
        ((375, 1242), (402, 1333)),  # the longest side decides: 402.47
        ((2000, 3000), (800, 1200)),
        ((1333, 800), (1333, 800)),
        ((1, 5000), (1, 1333)),
    ],
)
def test_two_sides_keep_the_shape(size_hw, expected):
    """As detectron2 and cvpods size the inputs of the published weights."""
    image, scale = fit(np.zeros((*size_hw, 3), np.uint8), (800, 1333))
    assert image.shape[:2] == expected
    assert scale == (expected[1] / size_hw[1], expected[0] / size_hw[0])


def test_what_keeps_its_shape_shrinks_antialiased():
    """As Pillow does it; what grows is bilinear as ever."""
    stripes = np.zeros((1700, 1600, 3), np.uint8)
    stripes[::2] = 255
    stripes[:, 800:] //= 3
    shrunk, _ = fit(stripes, (800, 1333))
    pillow = np.asarray(Image.fromarray(stripes).resize((800, 850), Image.Resampling.BILINEAR))
    assert np.abs(shrunk.astype(int) - pillow).max() <= 1
    assert np.abs(fit(stripes, (850, 850))[0].astype(int) - pillow).max() > 20
    grown = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    plain = cv2.resize(grown, (120, 80), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(fit(grown, (80, 200))[0], plain)


def test_a_batch_holds_the_largest():
    assert padded_hw([(20, 30), (33, 10)]) == [64, 32] and padded_hw([(800, 1333)]) == [800, 1344]


@pytest.mark.parametrize("size_hw, reduce", [((4, 10000), 4), ((10000, 1), 1), ((10000, 9), 8)])
def test_no_reduction_leaves_less_than_a_pixel(tmp_path, size_hw, reduce):
    assert reduction(size_hw, (640, 640)) == reduce
    path = tmp_path / "thin.jpg"
    path.write_bytes(encode(np.full((*size_hw, 3), 99, np.uint8), ".jpg"))
    image = read_image(path, reduce)
    assert image.shape[:2] == (size_hw[0] // reduce, size_hw[1] // reduce) and image.mean() > 90
