"""Where squares are cut out of images for pretraining: objects and background, near and far.

Boxes and squares are xyxy pixels of the image; every square is a whole number of pixels large and
lies inside its image. N boxes, K squares.
"""

import numpy as np

ZOOM = (0.8, 1.25)  # side of a square by that of the patch it becomes: how much sizes change
EMPTY_SIDES = (0.15, 0.5)  # of a square by the short side of an image without objects
SHIFT = 0.25  # by which a view is moved from its anchor at most, by the anchor's side
OFF_CENTRE = 0.15  # of the square's side, by which its object is moved from the middle at most
LEAST = 16  # pixels; smaller squares show nothing
MARGIN = 3  # pixels that background keeps from any object
TRIES = 64  # squares that are drawn at once, of which some fit
APART = 1.5  # least distance of a far square from the anchor, by their side: they never touch
# The published layout, by the sides of an image of 1280 x 720: neighbours on a grid that begins at
# the left, far squares in the right third.
PUBLISHED_HW, PUBLISHED_SIDE, PUBLISHED_LEFT = (720, 1280), 224, 200


def shared_area(boxes, squares):
    """[N, K]: the share of each box that each square covers."""
    low = np.maximum(boxes[:, None, :2], squares[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], squares[None, :, 2:])
    common = (high - low).clip(min=0).prod(axis=2)
    return common / (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)[:, None].clip(min=1e-9)


def draw_objects(labels, count, rng):
    """Indices of `count` boxes: a class first, then a box of it, so that rare ones are seen."""
    if not len(labels):
        return np.zeros(0, np.int64)
    kinds = rng.choice(np.unique(labels), count)
    return np.array([rng.choice(np.flatnonzero(labels == kind)) for kind in kinds], np.int64)


def around(boxes, side, size_hw, rng):
    """A square [N, 4] of about that side around each box, whatever its size, so that objects keep
    the one they have; all of the box is in it where it fits."""
    sides = _whole(side * rng.uniform(*ZOOM, len(boxes)), size_hw)[:, None]
    limits = np.array(size_hw[::-1]) - sides  # [N, 2] the last place
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    middle = middle + rng.uniform(-OFF_CENTRE, OFF_CENTRE, middle.shape) * sides
    low, high = boxes[:, 2:] - sides, boxes[:, :2]  # between these places it holds the box
    places = np.clip(middle - sides / 2, np.minimum(low, high), np.maximum(low, high))
    # Outwards, so that a box between two pixels is not cut.
    places = np.where(low <= high, np.clip(places.round(), np.ceil(low), np.floor(high)), places)
    places = np.clip(places, 0, limits).round()
    return np.concatenate([places, places + sides], axis=1)


def background(boxes, size_hw, count, rng):
    """Up to `count` squares [K, 4] that touch none of the boxes, nor the pixels next to them.

    They are as large as the objects are, or smaller where these do not fit; half of them lie
    beside an object where there is room.
    """
    if len(boxes):
        sides = rng.choice((boxes[:, 2:] - boxes[:, :2]).max(axis=1), TRIES)
    else:
        sides = min(size_hw) * rng.uniform(*EMPTY_SIDES, TRIES)
    found = np.zeros((0, 4))
    for shrink in (1.0, 0.6, 0.35):
        if len(found) >= count:
            break
        tried = _whole(sides * shrink, size_hw)[:, None]
        anywhere = _anywhere(tried, size_hw, rng)
        if len(boxes):
            near = _beside(rng.choice(boxes, TRIES), tried, size_hw, rng)
            anywhere = np.stack([near, anywhere], axis=1).reshape(-1, 4)
        found = np.concatenate([found, anywhere[_free(anywhere, boxes)]])
    return found[:count]


def neighbours(size_hw, side, count, rng):
    """(anchor [4], squares [count, 4] that touch it): anywhere, each on a side drawn at random, and
    slid along it by up to half a side. `side` is at most a third of the short side."""
    anchor = _anywhere(np.full((1, 1), side), size_hw, rng)[0]
    axis = rng.integers(0, 2, (count, TRIES))
    step = np.where(rng.random((count, TRIES)) < 0.5, -side, side)
    slide = np.round(rng.uniform(-side / 2, side / 2, (count, TRIES)))
    moves = np.where(axis[..., None] == (0, 1), step[..., None], slide[..., None])  # [K, T, 2]
    places = anchor[:2] + moves
    inside = ((places >= 0) & (places + side <= size_hw[::-1])).all(axis=2)
    # A quarter of the tries fits in a corner: that none does happens once in 100 million.
    chosen = places[np.arange(count), inside.argmax(axis=1)]
    chosen = np.where(inside.any(axis=1)[:, None], chosen, anchor[:2])
    return anchor, np.concatenate([chosen, chosen + side], axis=1)


def view(anchor, size_hw, rng):
    """A square [4] that shares most of the anchor: zoomed, shifted, inside the image."""
    side = anchor[2] - anchor[0]
    [zoomed] = _whole(side * rng.uniform(*ZOOM, 1), size_hw)
    moved = anchor[:2] + (side - zoomed) / 2 + rng.uniform(-SHIFT, SHIFT, 2) * side
    place = np.clip(moved.round(), 0, np.array(size_hw[::-1]) - zoomed)
    return np.concatenate([place, place + zoomed])


def common(squares):
    """[4]: what squares [N, 4] share."""
    return np.concatenate([squares[:, :2].max(axis=0), squares[:, 2:].min(axis=0)])


def inside(regions, squares, side):
    """Regions [N, 4] of the image as pixels [N, 4] of its squares, resized to `side`; what is
    outside is cut off."""
    corner = np.tile(squares[:, :2], 2)
    scale = side / (squares[:, 2:3] - squares[:, :1])
    return ((regions - corner) * scale).clip(0, side)


def far(anchor, near, size_hw, count, rng):
    """Up to `count` squares [K, 4] at least APART sides from the anchor (centre to centre, along
    the axis where they are farther) that overlap none of the `near` ones."""
    side = anchor[2] - anchor[0]
    drawn = _anywhere(np.full((TRIES, 1), side), size_hw, rng)
    distance = np.abs(drawn[:, :2] - anchor[:2]).max(axis=1)
    clear = ~(shared_area(near, drawn) > 0).any(axis=0)
    return drawn[(distance >= APART * side) & clear][:count]


def published(size_hw, rng):
    """(anchor, 4 neighbours, 4 far squares) as the published script lays them out, for comparison:
    anchors always in the left half, far squares always in the right third."""
    height, width = size_hw
    scale = min(height / PUBLISHED_HW[0], width / PUBLISHED_HW[1])
    side = int(PUBLISHED_SIDE * scale)
    highs = int(PUBLISHED_LEFT * scale) + 1, max(height - 3 * side, 1)
    corner = rng.integers(0, highs).astype(float)
    steps = np.array([(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)])
    places = corner + steps * side
    low, high = (width - 2 * side, 0), (width - side, height - side)
    places = np.concatenate([places, rng.integers(low, high, (4, 2))])
    squares = np.concatenate([places, places + side], axis=1)
    return squares[0], squares[1:5], squares[5:]


def _whole(sides, size_hw):
    """Sides in whole pixels, not below LEAST, not above the image's short side."""
    return np.clip(sides.round(), min(LEAST, *size_hw), min(size_hw))


def _anywhere(sides, size_hw, rng):
    """A square [K, 4] of each side [K, 1] at a random place."""
    limits = np.array(size_hw[::-1]) - sides
    places = np.floor(rng.random((len(sides), 2)) * (limits + 1))
    return np.concatenate([places, places + sides], axis=1)


def _beside(boxes, sides, size_hw, rng):
    """A square just outside each box, on a random side of it; clipped into the image, where it may
    touch a box again."""
    right = rng.random(boxes[:, :2].shape) < 0.5
    outside = np.where(right, boxes[:, 2:] + MARGIN + 1, boxes[:, :2] - MARGIN - 1 - sides)
    along = rng.uniform(boxes[:, :2] - sides, boxes[:, 2:])
    axis = rng.integers(0, 2, (len(boxes), 1)) == (0, 1)
    places = np.clip(np.where(axis, outside, along).round(), 0, np.array(size_hw[::-1]) - sides)
    return np.concatenate([places, places + sides], axis=1)


def _free(squares, boxes):
    """[K] which squares stay MARGIN pixels away from all boxes."""
    wide = squares + (-MARGIN, -MARGIN, MARGIN, MARGIN)
    return ~(shared_area(boxes, wide) > 0).any(axis=0)
