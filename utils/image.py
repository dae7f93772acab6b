"""Reading image files and resizing them as the detectors expect: BGR, uint8, upright."""

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn.functional import interpolate

from utils.errors import UserError

# fmt: off
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2",
)
# fmt: on
_JPEG_START, _PNG_START = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_JPEG_END = b"\xff\xd9"
_REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
SIDE_MULTIPLE = 32  # pixels; what both sides of a batch are a multiple of
SPARE = 1.5  # fewer pixels than this for each that is needed would blur when resized
_TAIL = 4096  # bytes at a file's end in which the end marker nearly always lies


def read_image(path, reduce=1):
    """The upright image of a file (EXIF orientation applied), uint8 BGR [H, W, 3].

    A JPEG is decoded at 1 / `reduce` (1, 2, 4 or 8) of its size, rounded down; others as they are.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    return decoded(data, path, reduce)


def decoded(data, path, reduce=1):
    """What `read_image` returns, of a file's content; `path` is what its errors name."""
    header = _read_header(io.BytesIO(data), path)
    # Rotated by this module, so that probe_image and every OpenCV release agree on the size.
    reduce = reduce if data.startswith(_JPEG_START) else 1
    flags = _REDUCED[reduce]
    flags |= cv2.IMREAD_IGNORE_ORIENTATION if header else 0
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise UserError(f"{path}: not an image that OpenCV can decode; replace or remove it")
    if header is None:
        return image
    height, width, orientation = header
    # A pixel that stands for less than a whole one at the edge would shift the others when fitted.
    return _upright(image[: height // reduce, : width // reduce], orientation)


def probe_image(path):
    """Upright (h, w) from a file's header; the end marker is checked, nothing is decoded.

    Formats other than JPEG and PNG are decoded, for they are rare.
    """
    try:
        with open(path, "rb") as stream:
            header = _read_header(stream, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    if header is None:
        return read_image(path).shape[:2]
    height, width, orientation = header
    return (width, height) if orientation >= 5 else (height, width)


def is_image(path):
    """Whether a file's name ends as images' names do."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def is_square(sides):
    """Whether sides (short, long), the most that those of a fitted image measure, are equal."""
    return sides[0] == sides[1]


def fit_ratio(size_hw, sides):
    """Factor by which an image of size_hw is resized to fit into sides (short, long)."""
    return min(sides[0] / min(size_hw), sides[1] / max(size_hw))


def fitted_size(size_hw, sides):
    """Size (h, w) of an image of size_hw once it is fitted into sides (short, long)."""
    ratio = fit_ratio(size_hw, sides)
    # Truncation for squares, else rounding: what the published weights of YOLOX and of YOLOF were
    # trained and measured with.
    half = 0.0 if is_square(sides) else 0.5
    return max(int(size_hw[0] * ratio + half), 1), max(int(size_hw[1] * ratio + half), 1)


def fit_scale(size_hw, sides):
    """(x, y): the factors of the boxes of an image of size_hw that is fitted into sides; one ratio
    for squares, else new size by old size."""
    if is_square(sides):
        ratio = fit_ratio(size_hw, sides)
        return ratio, ratio
    height, width = fitted_size(size_hw, sides)
    return width / size_hw[1], height / size_hw[0]


def padded_hw(sizes_hw):
    """(h, w) of a batch that holds images of these sizes [B, 2]: multiples of SIDE_MULTIPLE."""
    return (-(-np.max(sizes_hw, axis=0) // SIDE_MULTIPLE) * SIDE_MULTIPLE).tolist()


def reduction(size_hw, sides):
    """By how much (8, 4, 2 or 1) an image may be reduced before it is fitted into sides.

    What is left is the fitted size or at least SPARE times as much, and a pixel or more a side.
    """
    ratio = fit_ratio(size_hw, sides)
    whole = (n for n in (8, 4, 2) if n <= min(size_hw))
    return next((n for n in whole if n * ratio == 1 or n * ratio * SPARE <= 1), 1)


def resized(image, size_hw, antialias=False):
    """The image at size_hw, itself if it has that size; bilinear. With `antialias` a smaller image
    is filtered as Pillow does it, to within one level: each pixel tells of all that it covers."""
    height, width = image.shape[:2]
    if (height, width) == tuple(size_hw):
        return image
    if not (antialias and size_hw[0] <= height and size_hw[1] <= width):
        return cv2.resize(image, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_LINEAR)
    # By PyTorch, for no filter of OpenCV's equals Pillow's.
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]  # [1, 3, H, W]
    smaller = interpolate(pixels, size=tuple(size_hw), mode="bilinear", antialias=True)
    return np.ascontiguousarray(smaller[0].permute(1, 2, 0).numpy())


def fit(image, sides):
    """(image resized to fit into sides (short, long), the factors (x, y) of its boxes).

    Nothing is padded. Only what is no square is antialiased: YOLOX's weights know plain bilinear.
    """
    size_hw = image.shape[:2]
    fitted = resized(image, fitted_size(size_hw, sides), antialias=not is_square(sides))
    return fitted, fit_scale(size_hw, sides)


def _read_header(stream, path):
    """(height, width, EXIF orientation) of a whole JPEG or PNG; None for other formats."""
    start = stream.read(8)
    if not start:
        raise UserError(f"{path}: the file is empty; replace or remove it")
    try:
        if start.startswith(_JPEG_START):
            header = _jpeg_header(stream)
        elif start == _PNG_START:
            header = _png_header(stream)
        else:
            return None
    except (struct.error, IndexError):  # the file ends within its header
        header = None
    if header is None:
        raise UserError(f"{path}: the image file is cut off or damaged; copy it again or remove it")
    return header


def _jpeg_header(stream):
    """Walks the segments up to the pixel data; None if a part is missing."""
    size, orientation = None, 1
    stream.seek(2)
    while True:
        while stream.read(1)[0] != 0xFF:  # decoders skip stray bytes between segments
            pass
        byte = 0xFF
        while byte == 0xFF:  # any number of fill bytes may precede a marker
            byte = stream.read(1)[0]
        (length,) = struct.unpack(">H", stream.read(2))
        if byte == 0xDA:
            break
        after = stream.tell() + length - 2
        if 0xC0 <= byte <= 0xCF and byte not in (0xC4, 0xC8, 0xCC):
            size = struct.unpack(">xHH", stream.read(5))
        elif byte == 0xE1 and stream.read(6) == b"Exif\0\0":
            orientation = _exif_orientation(stream.read(length - 8))
        stream.seek(after)
    if size is None or 0 in size or not _has_jpeg_end(stream):
        return None
    return *size, orientation


def _has_jpeg_end(stream):
    """Pixel data holds no 0xFF 0xD9, so these bytes after its start are the end marker."""
    first = stream.tell()
    last = stream.seek(0, io.SEEK_END)
    stream.seek(max(first, last - _TAIL))
    if _JPEG_END in stream.read():
        return True
    stream.seek(first)
    return _JPEG_END in stream.read()


def _png_header(stream):
    """Walks all chunks; None if the last one is missing."""
    size, orientation = None, 1
    while True:
        length, kind = struct.unpack(">I4s", stream.read(8))
        after = stream.tell() + length + 4
        if kind == b"IHDR":
            width, height = struct.unpack(">II", stream.read(8))
            size = height, width
        elif kind == b"eXIf":
            orientation = _exif_orientation(stream.read(length))
        elif kind == b"IEND":
            return None if size is None or 0 in size else (*size, orientation)
        stream.seek(after)


def _exif_orientation(block):
    """Tag 0x0112 of an EXIF block, 1 (upright) where it is missing or malformed."""
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(order + "HHIH", block, entry)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _upright(image, orientation):
    """Undoes the EXIF orientation 1..8."""
    if orientation >= 5:
        image = cv2.transpose(image)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return image if flip is None else cv2.flip(image, flip)
