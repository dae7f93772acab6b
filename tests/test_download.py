import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "data" / "download_voc07.sh"
NAMES = {"trainval": "VOCtrainval_06-Nov-2007.tar", "test": "VOCtest_06-Nov-2007.tar"}
IDS = {"trainval": ("000005", "000007"), "test": ("000001",)}
TOOLS = "sh bash mkdir grep find wc md5sum cut sed mv rm tar cat".split()

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or not shutil.which("curl"), reason="needs sh and curl"
)


def write_mirror(folder):
    """A folder of miniature tars; returns what must be set for the script to take them as VOC."""
    folder.mkdir()
    settings = {"VOC_MIRRORS": folder.as_uri()}
    for split, name in NAMES.items():
        files = {f"ImageSets/Main/{split}.txt": "".join(f"{i}\n" for i in IDS[split])}
        for image in IDS[split]:
            files |= {f"JPEGImages/{image}.jpg": "x", f"Annotations/{image}.xml": "<annotation/>"}
        with tarfile.open(folder / name, "w") as tar:
            for file, text in files.items():
                item = tarfile.TarInfo(f"VOCdevkit/VOC2007/{file}")
                item.size = len(text)
                tar.addfile(item, io.BytesIO(text.encode()))
        settings[f"MD5_{split.upper()}"] = hashlib.md5((folder / name).read_bytes()).hexdigest()
        settings[f"COUNT_{split.upper()}"] = str(len(IDS[split]))
    return settings


def run(folder, settings, shell="sh"):
    """(exit code, all output) of the script."""
    result = subprocess.run(
        [shell, SCRIPT, folder],
        env={"PATH": os.environ["PATH"], **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return result.returncode, result.stdout


def no_set(root):
    return not (root / "VOCdevkit").exists()


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_fetches_once(tmp_path, shell):
    settings = write_mirror(tmp_path / "mirror")
    root = tmp_path / "a folder: mine"
    code, output = run(root, settings, shell)
    assert code == 0 and "2 trainval and 1 test" in output
    assert [path.name for path in root.iterdir()] == ["VOCdevkit"]
    assert len(list(root.glob("VOCdevkit/VOC2007/JPEGImages/*.jpg"))) == 3
    code, output = run(root, {**settings, "VOC_MIRRORS": "file:///nowhere"}, shell)
    assert code == 0 and "nothing to do" in output


def test_half_a_set_is_completed(tmp_path):
    settings = write_mirror(tmp_path / "mirror")
    assert run(tmp_path / "root", settings)[0] == 0
    (tmp_path / "root" / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000007.jpg").unlink()
    assert run(tmp_path / "root", settings)[0] == 0
    assert (tmp_path / "root" / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000007.jpg").is_file()


def test_goes_on_with_a_part(tmp_path):
    settings = write_mirror(tmp_path / "mirror")
    whole = (tmp_path / "mirror" / NAMES["trainval"]).read_bytes()
    # The mirror's first half is spoilt: only who goes on with the good half gets the right sum.
    half = len(whole) // 2
    (tmp_path / "mirror" / NAMES["trainval"]).write_bytes(bytes(half) + whole[half:])
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / f"{NAMES['trainval']}.part").write_bytes(whole[:half])
    assert run(tmp_path / "root", settings)[0] == 0


def test_refuses_a_wrong_sum(tmp_path):
    settings = write_mirror(tmp_path / "mirror")
    settings.pop("MD5_TEST")  # the true one, which the miniature has not
    code, output = run(tmp_path / "root", settings)
    assert code == 1 and "b6e924de25625d8de591ea690078ad9f" in output
    assert no_set(tmp_path / "root")
    # The good tar is kept, the bad one is not.
    assert [path.name for path in (tmp_path / "root").iterdir()] == [NAMES["trainval"]]


def test_a_bad_file_of_the_user_is_set_aside(tmp_path):
    settings = write_mirror(tmp_path / "mirror")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / NAMES["test"]).write_text("<html>not found</html>")
    assert run(tmp_path / "root", settings)[0] == 0
    assert (tmp_path / "root" / f"{NAMES['test']}.bad").read_text().startswith("<html>")


def test_the_next_mirror_is_tried(tmp_path):
    settings = write_mirror(tmp_path / "mirror")
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / NAMES["trainval"]).write_text("<html>moved</html>")
    mirrors = f"file:///nowhere {bad.as_uri()} {settings['VOC_MIRRORS']}"
    assert run(tmp_path / "root", {**settings, "VOC_MIRRORS": mirrors})[0] == 0


def test_without_network(tmp_path):
    code, output = run(tmp_path / "root", {"VOC_MIRRORS": "file:///nowhere"})
    assert code == 1 and no_set(tmp_path / "root")
    for words in ("file:///nowhere/VOCtrainval", "by other means", str(tmp_path / "root")):
        assert words in output


def test_a_tar_that_cannot_be_extracted_is_kept(tmp_path):
    settings = write_mirror(tmp_path / "mirror")
    tar = tmp_path / "mirror" / NAMES["test"]
    tar.write_text("no tar")
    settings["MD5_TEST"] = hashlib.md5(tar.read_bytes()).hexdigest()
    code, output = run(tmp_path / "root", settings)
    assert code == 1 and "could not be extracted" in output
    assert (tmp_path / "root" / NAMES["trainval"]).is_file()


def test_bad_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", "--root"):
        code, output = run(folder, {})
        assert code == 2 and "error" in output


def test_wget_where_curl_is_missing(tmp_path):
    settings = write_mirror(tmp_path / "mirror")
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    code, output = run(tmp_path / "root", {**settings, "PATH": str(tmp_path / "bin")})
    assert code == 1 and "curl or wget" in output
    wget = tmp_path / "bin" / "wget"
    wget.write_text('#!/bin/sh\n[ "$1" = -c ] && [ "$4" = -O ] && cat "${6#file://}" > "$5"\n')
    wget.chmod(0o755)
    assert run(tmp_path / "root", {**settings, "PATH": str(tmp_path / "bin")})[0] == 0
