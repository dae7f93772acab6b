"""What the benchmark of memory measures with: its set, and a look at processes that come and go."""

import subprocess
import sys

import pytest

from benchmarks import memory

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")


def test_the_set_is_one_that_is_read(tmp_path):
    path = memory.write_set(tmp_path, 100, 250)
    records = memory.read_set(path, check=True)
    assert (len(records), len(records.boxes), len(records.classes)) == (100, 250, 80)
    assert not records.notes and records.image_ids[:2].tolist() == [9, 12]
    assert (tmp_path / "store").is_dir()


@LINUX
def test_memory_of_a_process_and_of_one_that_ended():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    resident, children = 0, 0
    while children <= 1 << 16 and process.poll() is None:  # a child shares all until it has begun
        resident, children = memory.memory_of(process.pid) or (0, 0)
    assert resident > 1 << 20 and children > 1 << 16
    process.stdin.close()
    while memory.memory_of(process.pid):  # until it has ended, without having been waited for
        pass
    process.wait()
    assert memory.memory_of(process.pid) is None
