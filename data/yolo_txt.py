"""One YOLO label file: `class cx cy w h` a line, in fractions of the image's width and height.

A line `class x y x y x y ...` is a polygon and becomes its bounding box. A sixth number, which is a
detector's confidence, is not read.
"""

LITTLE = 0.01  # that a value may lie outside 0..1, for tools round
MOST_CLASSES = 10_000  # a greater class number is a slip of the pen

UNKNOWN = "class numbers outside the classes"
WORDS = "lines that are not numbers were left out"
COLUMNS = "lines that are neither `class cx cy w h` nor a polygon were left out"
OUTSIDE = "lines with a value that is not in 0..1 were left out"
TWICE = "lines that repeat an earlier one were left out"
POLYGONS = "polygons were read as their bounding boxes"
CONFIDENCES = "lines have a sixth number, which was not read"


def parse(path, file, faults, odd):
    """[(line, class number, (x1, y1, x2, y2) in fractions)] of a label file.

    `file` is its name in faults; for each polygon and confidence it is added to the list that the
    dict `odd` has under POLYGONS and CONFIDENCES.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        sentence = f"{path}: cannot be read ({error.strerror or error})"
        faults.error("label files cannot be read", path, sentence)
        return []
    rows, outside, seen = [], [], set()
    for line, words in enumerate(map(str.split, text.splitlines()), start=1):
        if not words:
            continue
        number, values = _numbers(words)
        coordinates = _coordinates(values)
        if number is None or not coordinates:
            kind = WORDS if number is None else COLUMNS
            faults.drop(kind, file, f"line {line}: {' '.join(words)[:80]}")
        elif not 0 <= number < MOST_CLASSES:
            sentence = f"{path}, line {line}: {words[0]:.20} is no class number; they count from 0"
            faults.error(UNKNOWN, path, sentence)
        elif not all(-LITTLE <= value <= 1 + LITTLE for value in coordinates):
            outside.append((line, coordinates))
        elif (row := (number, _corners(coordinates))) in seen:
            faults.drop(TWICE, file, f"line {line}")
        else:
            seen.add(row)
            rows.append((line, *row))
            if len(values) > 4:
                odd[CONFIDENCES if len(values) == 5 else POLYGONS].append(file)
    _tell_outside(outside, bool(rows), path, file, faults)
    return rows


def _numbers(words):
    """(class number, other values) of a line; (None, ()) if they are not numbers."""
    try:
        number, *values = map(float, words)
    except ValueError:
        return None, ()
    return (int(number), values) if number.is_integer() else (None, ())


def _coordinates(values):
    """Four of a box or 2n of a polygon; none for a count of values that neither has."""
    if len(values) in (4, 5):
        return values[:4]
    return values if len(values) >= 6 and len(values) % 2 == 0 else ()


def _corners(coordinates):
    """(x1, y1, x2, y2) of cx, cy, w, h or of a polygon."""
    if len(coordinates) == 4:
        x, y, width, height = coordinates
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    xs, ys = coordinates[::2], coordinates[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def _tell_outside(outside, others, path, file, faults):
    """Drops lines; but a file whose every value is greater than 1 was written in pixels."""
    if outside and not others and all(v > 1 for _, values in outside for v in values):
        faults.error(
            "label files in pixels",
            path,
            f"{path}: all coordinates are greater than 1, as if they were pixels; YOLO's are "
            "fractions: centre and size divided by the image's width or height",
        )
        return
    for line, values in outside:
        faults.drop(OUTSIDE, file, f"line {line}: {' '.join(f'{v:g}' for v in values)[:80]}")
