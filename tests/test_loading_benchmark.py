import json

import cv2
import numpy as np

import benchmark
from benchmarks import loading


def test_every_side_of_ours_is_timed(tmp_path, capsys):
    images, annotations = [], []
    for number in range(1, 6):
        image = np.full((40, 60, 3), 40 * number, np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), image)
        images.append({"id": number, "file_name": f"{number}.jpg", "height": 40, "width": 60})
        box = {"bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}
        annotations.append({"id": number, "image_id": number, "category_id": 1, **box})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "set.json").write_text(json.dumps(content))
    places = ["--ann", str(tmp_path / "set.json"), "--images", str(tmp_path)]
    sizes = ["--img_size", "64", "-bs", "2", "--batches", "2", "--rounds", "3", "--limit", "4"]
    loading.run(benchmark.parse_arguments("loading", ["-d", "coco", *places, *sizes]))
    first, *sides = capsys.readouterr().out.splitlines()
    assert first == "4 images at 64, one core, median of 3 turns of 4 samples:"
    kept = (loading.NONE, loading.WINDOW_ONLY, loading.ALL)
    assert [line.split("  ")[1] for line in sides] == [f"ours, {keep}" for keep in kept]
    assert all(float(line.split()[-2]) > 0 for line in sides)
