import os

import pytest

from utils.errors import UserError
from utils.source import find


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Empty files of all kinds; the current folder is the one above them."""
    for name in (
        "photos/b.jpg",
        "photos/a.PNG",
        "photos/notes.md",
        "photos/deep/c.jpeg",
        "photos/deep/film.MP4",
        "photos/b.png",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(found):
    return [name for name, _ in found.images], [name for name, _ in found.videos]


def test_an_image_and_a_video(tree):
    found = find("photos/b.jpg")
    assert names(found) == (["b.jpg"], []) and found.images[0][1].samefile(tree / "photos/b.jpg")
    assert find("photos/deep/film.MP4").videos == [("film.MP4", "photos/deep/film.MP4")]
    assert find("photos/notes.md").videos == [("notes.md", "photos/notes.md")]  # opening tells


def test_a_folder_keeps_its_tree(tree):
    assert names(find("photos")) == (["a.PNG", "b.jpg", "b.png", "deep/c.jpeg"], ["deep/film.MP4"])
    assert names(find(str(tree / "photos")))[0][3] == "deep/c.jpeg"
    assert names(find("."))[0][0] == "photos/a.PNG"


def test_patterns(tree):
    assert names(find("photos/*.jpg")) == (["b.jpg"], [])
    assert names(find("photos/**/*")) == names(find("photos"))
    assert names(find("photos/deep/*")) == (["c.jpeg"], ["film.MP4"])
    (tree / "odd[1].jpg").touch()
    assert names(find("odd[1].jpg")) == (["odd[1].jpg"], [])  # a file of that name comes first


def test_a_list_is_kept_in_its_order(tree):
    listed = tree / "photos" / "list.txt"
    listed.write_text("\ufeffphotos/deep/c.jpeg\n\nb.jpg\nphotos/deep/film.MP4\ngone.jpg\nb.jpg\n")
    found = find("photos/list.txt")
    assert names(found) == (["deep/c.jpeg", "b.jpg", "gone.jpg"], ["deep/film.MP4"])
    listed.write_text("photos/notes.md\n")  # told when it is read, not left out
    assert names(find("photos/list.txt")) == (["notes.md"], [])


def test_cameras_and_streams():
    assert find("0").videos == [("camera0", 0)]
    assert find("12").videos == [("camera12", 12)]
    (name, address), *_ = find("rtsp://user:secret@10.0.0.7:554/live/1?x=y").videos
    assert address.startswith("rtsp://user:secret@") and name == "10.0.0.7_554_live_1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nowhere.jpg", "no such file or folder"),
        ("photos/*.gif", "no image or video among 0 files"),
        ("empty", "no image or video among 1 files"),
        ("empty.txt", "the list is empty"),
        ("binary.txt", "cannot be read as a list"),
    ],
)
def test_mistakes(tree, text, expected):
    (tree / "empty").mkdir()
    (tree / "empty" / "readme.md").touch()
    (tree / "empty.txt").touch()
    (tree / "binary.txt").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match=f"--source {text.replace('*', '.')}.*{expected}"):
        find(text)


@pytest.mark.skipif(os.name != "posix", reason="names are text elsewhere")
def test_names_that_are_not_utf8(tree):
    with open(os.fsencode(tree) + b"/photos/\xff.jpg", "wb"):
        pass
    found = find("photos/*.jpg")
    assert len(found.images) == 2 and all(path.exists() for _, path in found.images)
