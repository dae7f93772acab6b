import numpy as np
import pytest

from data.builder import Builder
from data.clips import STILL, Videos, Window
from data.faults import Faults


def make_records(places, videos=()):
    """A set of images of these (video, frame number)."""
    builder = Builder("x", ("a",), Faults(), videos=videos)
    for number, (video, frame) in enumerate(places):
        builder.image(f"{number}.jpg", (5, 5), video=video, frame=frame)
    return builder.records()


def images(records):
    """The image indices of each video."""
    videos = Videos(records)
    return [[videos.image(v, t) for t in range(videos.length(v))] for v in range(len(videos))]


def test_stills_come_first_and_frames_by_number():
    places = [(1, 7), (-1, 0), (0, 14), (1, -2), (-1, 0), (0, 4), (0, 9)]
    assert images(make_records(places, ("a", "b"))) == [[1], [4], [5, 6, 2], [3, 0]]
    assert images(make_records([(-1, 0)] * 3)) == [[0], [1], [2]]


def test_a_video_without_frames_is_none():
    assert images(make_records([(2, 5), (2, 4)], ("a", "b", "c"))) == [[1, 0]]


def pieces(window, length):
    rng = np.random.default_rng(0)
    return [[frame for _, frame in window.frames(length, key, rng)] for key in window.keys(length)]


def test_pieces_of_a_video():
    assert pieces(Window(3), 6) == [[0, 1, 2], [3, 4, 5]]
    assert pieces(Window(3), 7) == [[0, 1, 2], [3, 4, 5], [4, 5, 6]]
    assert pieces(Window(3, 2), 7) == [[0, 2, 4], [2, 4, 6], [1, 3, 5]]
    assert pieces(Window(3), 2) == [[0, 1, 1]] and pieces(Window(2, 5), 3) == [
        [0, 0],
        [1, 1],
        [2, 2],
    ]
    assert pieces(STILL, 3) == [[0], [1], [2]] and pieces(Window(4), 0) == []
    assert Window(3).frames(6, 3, None)[0] == ("key", 3)


@pytest.mark.parametrize("interval", [1, 2, 5])
@pytest.mark.parametrize("length", [1, 2, 4, 9])
def test_every_frame_is_in_a_piece(length, interval):
    for frames in range(24):
        found = pieces(Window(length, interval), frames)
        assert {frame for piece in found for frame in piece} == set(range(frames))
        assert all(len(piece) == length for piece in found)
        steps = {step for piece in found for step in np.diff(piece).tolist()}
        assert steps <= ({interval} if frames >= length * interval else {interval, 0})
        firsts = [piece[0] for piece in found]
        assert len(set(firsts)) == len(firsts) <= frames / length + interval


def test_a_jump_in_frame_numbers_begins_another_video():
    numbers = [0, 1, 2, 4, 7, 8, 100, 101]  # one lost frame is no jump, two are
    assert images(make_records([(0, n) for n in numbers], ("a",))) == [[0, 1, 2, 3], [4, 5], [6, 7]]
    tens = [(0, 10 * n) for n in (0, 1, 2, 4, 8)]
    assert images(make_records(tens, ("a",))) == [[0, 1, 2, 3], [4]]
    assert images(make_records([(0, 0), (0, 1), (0, 50)], ("a",))) == [[0, 1], [2]]
    assert images(make_records([(0, 3), (0, 50), (1, 51), (1, 52)], ("a", "b"))) == [[0, 1], [2, 3]]
