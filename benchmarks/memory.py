"""Measure the memory of a large COCO set, of workers that go through it, of long runs.

python benchmark.py memory
python benchmark.py memory --images 20000 --boxes 150000 --epochs 10

Draws a json of the size of COCO's own, with polygons, and a small JPEG for each image, in a
temporary folder. Fresh processes (1) read it with the reader `coco`, (2) check its image files, and
(3) go through it once with 2 workers as an evaluation does; (4) train.py trains on 64 images.
Resident memory is VmRSS, its peak VmHWM; unshared memory (USS) is the sum of the Private lines of
smaps_rollup. Both come from /proc, so this runs under Linux only.
"""

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

import data
from utils import cli
from utils.classes import COCO_CATEGORY_IDS, COCO_CLASSES
from utils.errors import UserError
from utils.log import say

SIDE = 64  # of the images, pixels
LINKS = 20_000  # file systems limit the names of one file
POLYGONS = 500  # different ones
BATCH_SIZE = 64
SMALL_SET = 64  # images of the long run
EARLY = (5, 15)  # epochs with which the last one is compared: before and after an evaluation
MIB = 2**20
ROOT = Path(__file__).resolve().parent.parent


def add_flags(parser: cli.Parser):
    parser.add_argument(
        "--images", type=cli.whole(100), default=200_000, metavar="N", help="images (200000)"
    )
    parser.add_argument(
        "--boxes", type=cli.whole(1), default=1_500_000, metavar="N", help="boxes (1500000)"
    )
    parser.add_argument(
        "--epochs", type=cli.whole(0), default=50, metavar="N", help="epochs of the long run (50)"
    )


def write_set(folder: Path, images: int, boxes: int) -> Path:
    """A json in the order of COCO's own, and the images that it names."""
    rng = random.Random(1)
    jpeg = cv2.imencode(".jpg", np.full((SIDE, SIDE, 3), 128, np.uint8))[1].tobytes()
    names = [
        f"images/camera_{number % 1000:03d}_of_a_long_campaign/{number:012d}.jpg"
        for number in range(images)
    ]
    for name in names[:1000]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        if number % LINKS == 0:
            source = folder / name
            source.write_bytes(jpeg)
        else:
            os.link(source, folder / name)
    polygons = [
        json.dumps([[round(rng.uniform(0, 640), 2) for _ in range(24)]]) for _ in range(POLYGONS)
    ]
    path = folder / "instances.json"
    with open(path, "w") as stream:
        stream.write('{"info": {"year": 2017}, "licenses": [], "images": [')
        for number, name in enumerate(names):
            url = f"http://images.example.org/train2017/{number:012d}.jpg"
            image = {"license": 3, "file_name": name, "coco_url": url, "height": SIDE}
            image |= {"width": SIDE, "date_captured": "2013-11-14 17:02:52", "flickr_url": url}
            stream.write((", " if number else "") + json.dumps({**image, "id": number * 3 + 9}))
        stream.write('], "annotations": [')
        for number in range(boxes):
            x, y = round(rng.uniform(0, SIDE - 20), 2), round(rng.uniform(0, SIDE - 20), 2)
            width, height = round(rng.uniform(3, 20), 2), round(rng.uniform(3, 20), 2)
            category_id = COCO_CATEGORY_IDS[rng.randrange(len(COCO_CATEGORY_IDS))]
            stream.write(
                f'{", " if number else ""}{{"segmentation": {rng.choice(polygons)}, "area": '
                f'{width * height * 0.6:.5f}, "iscrowd": 0, "image_id": '
                f'{rng.randrange(images) * 3 + 9}, "bbox": [{x}, {y}, {width}, {height}], '
                f'"category_id": {category_id}, "id": {number + 1}}}'
            )
        pairs = zip(COCO_CATEGORY_IDS, COCO_CLASSES, strict=True)
        categories = [{"supercategory": "thing", "id": i, "name": name} for i, name in pairs]
        stream.write(f'], "categories": {json.dumps(categories)}}}')
    return path


def status(pid="self") -> tuple[int, int]:
    """(resident, its peak) bytes of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    return int(found["VmRSS"]) << 10, int(found["VmHWM"]) << 10


def unshared(pid: int) -> int:
    """Bytes that would be free if the process ended (USS)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))


def reset_peak():
    Path("/proc/self/clear_refs").write_text("5")


def read_set(path: Path, check: bool) -> data.Records:
    records = data.read("coco", path.parent, "train", annotation=path, images=path.parent)
    if check:
        data.check_files(records, path.parent / "store")
    return records


def measure_reading(path: Path, check: bool, answers):
    """Puts (resident above the start, peak above the start, seconds, images, boxes)."""
    reset_peak()
    start = status()[0]
    begin = time.perf_counter()
    records = read_set(path, check)
    seconds = time.perf_counter() - begin
    resident, peak = status()
    answers.put((resident - start, peak - start, seconds, len(records), len(records.boxes)))


def measure_workers(path: Path, answers):
    """Puts [(share of the epoch, unshared bytes of each worker)]."""
    records = read_set(path, check=False)
    loader = data.build_loader(
        records,
        train=False,
        sides=(SIDE, SIDE),
        batch_size=BATCH_SIZE,
        num_workers=2,
        seed=0,
        context="fork",  # the default under Linux, but for processes that were spawned
    )
    stops = {max(int(share * loader.per_epoch) - 1, 9): share for share in (0.05, 0.5, 1.0)}
    found = []
    for step, _ in enumerate(loader.batches(0)):
        if step in stops:
            workers = [process.pid for process in multiprocessing.active_children()]
            found.append((stops[step], [unshared(pid) for pid in workers]))
    loader.close()
    answers.put(found)


def in_fresh_process(function, *arguments):
    """What a function puts into a queue, from a process that has done nothing else."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=function, args=(*arguments, answers))
    process.start()
    while process.is_alive() and answers.empty():
        time.sleep(0.1)
    if answers.empty():
        raise UserError(f"{function.__name__} ended without a result; its error stands above")
    answer = answers.get()
    process.join()
    return answer


def measure_run(folder: Path, epochs: int) -> dict[int, tuple[int, int]]:
    """{epoch: (resident of train.py, unshared of its workers)} of a run over a few images."""
    command = [sys.executable, str(ROOT / "train.py"), "-d", "synthetic", "--root", str(folder)]
    command += ["--limit", str(SMALL_SET), "-v", "yolox-nano", "--img_size", "96", "-bs", "8"]
    command += ["--epochs", str(epochs), "--eval_epoch", "10", "--num_workers", "1"]
    found = {}
    with open(folder / "output.txt", "w") as output:
        process = subprocess.Popen(
            [*command, "--save_folder", str(folder / "runs")], stdout=output, stderr=output
        )
        while process.poll() is None:
            epoch = _epochs_done(folder / "runs")
            if epoch and epoch not in found:
                memory = memory_of(process.pid)
                if memory:
                    found[epoch] = memory
            time.sleep(0.05)
    if process.returncode:
        raise UserError(f"train.py failed:\n{(folder / 'output.txt').read_text()[-2000:]}")
    return found


def memory_of(pid: int) -> tuple[int, int] | None:
    """(resident of a process, unshared of its children); None if one of them ends meanwhile."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return status(pid)[0], sum(unshared(int(child)) for child in children.split())
    except (FileNotFoundError, ProcessLookupError, KeyError):  # KeyError: ended, not yet waited for
        return None


def _epochs_done(runs: Path) -> int:
    """The epoch of the last line in the run's log, which comes every tenth step; 0 before it."""
    lines = [line for path in runs.rglob("log.jsonl") for line in path.read_text().splitlines()]
    return json.loads(lines[-1])["epoch"] if lines and lines[-1].endswith("}") else 0


def run(args: argparse.Namespace):
    if not os.path.exists("/proc/self/smaps_rollup"):
        raise UserError("there is no /proc/self/smaps_rollup; memory is measured under Linux only")
    with tempfile.TemporaryDirectory() as name:
        path = write_set(Path(name), args.images, args.boxes)
        say(
            f"json of {path.stat().st_size / MIB:.0f} MiB, {args.images} images, {args.boxes} boxes"
        )
        for what, check in (("read", False), ("read, and image files checked", True)):
            resident, peak, seconds, *_ = in_fresh_process(measure_reading, path, check)
            say(
                f"  {what}: {resident / MIB:.0f} MiB above the start, at the peak "
                f"{peak / MIB:.0f} MiB, {seconds:.1f} s"
            )
        say("unshared memory of 2 workers that go through the set once, MiB")
        for share, workers in in_fresh_process(measure_workers, path):
            shown = ", ".join(f"{size / MIB:.1f}" for size in workers)
            say(f"  after {share:4.0%}: {shown}")
        if args.epochs:
            found = measure_run(Path(name), args.epochs)
            say(f"training of {SMALL_SET} images, MiB: resident; unshared memory of its workers")
            if not found:
                say("  not measured: it was over before it could be looked at; see --epochs")
            for epoch in sorted({*found.keys() & EARLY, *list(found)[-1:]}):
                main, workers = found[epoch]
                say(f"  epoch {epoch:3d}: {main / MIB:.0f}; {workers / MIB:.1f}")
