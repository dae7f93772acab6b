import os
import pickle

import pytest

from data.names import Names, collect

FILES = ("a.jpg", "", "größe/b.png", "日本.jpg", os.fsdecode(b"\xff\xfe.jpg"), "\ud83d.jpg")


def test_names_are_a_sequence():
    names = collect(FILES)
    assert len(names) == 6 and tuple(names) == FILES and names == FILES and names == list(FILES)
    assert [names[i] for i in range(-6, 6)] == [*FILES, *FILES]
    assert "日本.jpg" in names and names.index("") == 1 and list(reversed(names)) == [*FILES[::-1]]
    assert names != FILES[:5] and names != (*FILES[:5], "x") and names != "a.jpg"
    assert hash(names) == hash(collect(FILES)) and len(collect([])) == 0 and collect([]) == ()
    with pytest.raises(IndexError):
        names[6]
    with pytest.raises(IndexError):
        names[-7]


@pytest.mark.parametrize(
    "part", [slice(2), slice(1, 4), slice(4, 1), slice(-2, None), slice(None, None, -2), slice(99)]
)
def test_slices(part):
    names = collect(FILES)[part]
    assert isinstance(names, Names) and tuple(names) == FILES[part]
    assert tuple(names[1:]) == FILES[part][1:]


def test_names_travel():
    assert pickle.loads(pickle.dumps(collect(FILES))) == FILES
    assert repr(collect(["a", "b"])) == "Names('a', 'b')" and "..." in repr(collect(FILES))
