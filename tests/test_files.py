import cv2
import numpy as np
import pytest

from data import files as module
from data.faults import Faults
from data.files import check_files
from tests.test_records import make_records
from utils.errors import UserError


def write_images(records):
    for file, (height, width) in zip(records.files, records.sizes, strict=True):
        path = records.root / file
        path.write_bytes(cv2.imencode(path.suffix, np.zeros((height, width, 3), np.uint8))[1])


def test_check_files(tmp_path, monkeypatch):
    records, store = make_records(tmp_path), tmp_path / "store"
    write_images(records)
    check_files(records, store)

    def fail(path):
        raise AssertionError("the cache knows this file")

    with monkeypatch.context() as patch:
        patch.setattr(module, "probe_image", fail)
        check_files(records, store)

    path = records.path(1)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="1 of 3 images are faulty.*b.jpg.*cut off"):
        check_files(records, store)
    path.unlink()
    with pytest.raises(UserError, match="b.jpg: the image is missing"):
        check_files(records, store)
    path.write_bytes(cv2.imencode(".jpg", np.zeros((80, 66, 3), np.uint8))[1])
    with pytest.raises(UserError, match=r"b.jpg: \[80, 66\].*\[60, 80\] in the labels"):
        check_files(records, store)


def test_all_faulty_files_are_told(tmp_path):
    records, faults = make_records(tmp_path), Faults(collect=True)
    write_images(records)
    records.path(0).write_bytes(b"")
    records.path(1).write_bytes(cv2.imencode(".jpg", np.zeros((80, 60, 3), np.uint8))[1])
    records.path(2).unlink()
    for _ in range(2):  # the second time some of it is known
        faults.found.clear()
        check_files(records, tmp_path / "store", faults)
        assert [(f.kind, f.file) for f in faults.found] == [
            (module.DAMAGED, "a.jpg"),
            (module.SIZE, "b.jpg"),
            (module.MISSING, "c.jpg"),
        ]
    assert "(swapped, as by labels that do not know of the EXIF" in faults.found[1].detail


def test_findings_on_other_images_are_kept(tmp_path, monkeypatch):
    records, store = make_records(tmp_path), tmp_path / "store"
    write_images(records)
    for part in ([0, 1], [1, 2]):
        check_files(records.subset(part), store)
    monkeypatch.setattr(module, "probe_image", None)
    check_files(records, store)
    assert len(list(store.iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_a_damaged_store_is_written_anew(tmp_path, content):
    records, store = make_records(tmp_path), tmp_path / "store"
    write_images(records)
    check_files(records, store)
    (path,) = store.iterdir()
    if content is None:
        np.save(path, np.zeros((3, 2)))
    else:
        path.write_bytes(content)
    check_files(records, store)
    assert np.load(path).shape == (3, 5)


def test_a_user_without_a_home(tmp_path, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    records = make_records(tmp_path / "set")
    records.root.mkdir()
    write_images(records)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(module.Path, "home", no_home)
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path / "shared"))
    check_files(records)
    assert len(list((tmp_path / "shared" / "detection-data").iterdir())) == 1


def test_check_files_without_a_place_for_its_store(tmp_path):
    records = make_records(tmp_path)
    write_images(records)
    (tmp_path / "file").write_text("")
    check_files(records, tmp_path / "file")
