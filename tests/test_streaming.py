"""A model that remembers, frame by frame: alone, several videos in rows, made fast, in demo.py."""

import functools
import importlib
import json

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import models
import recipes
from cuda_ops import DCNv3
from data.frames import videos_of
from models import tiles
from models.fusing import fuse
from models.optimize import LAYOUTS, PackedConv
from tests.calls import Call
from tests.detectors import CLASSES, SIZE, batch, build, score_layers, settled
from utils import checkpoint
from utils.errors import UserError
from utils.playback import Playback
from utils.precision import cpu_computes_bf16
from utils.results import Results
from utils.video import Video, Writer

MODULE = importlib.import_module("models.optimize")  # models.optimize itself is the function
packs = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="built without oneDNN")
MEMORIES = ("gru", "deform", "mstf")
CONF = 0.42


@functools.cache
def model(memory: str = "gru"):
    """The smallest network with a memory, normed by the noise it will see; nobody changes it."""
    torch.manual_seed(0)
    made = build("yoloft-nano", memory=memory).train()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # plain means
            nn.init.uniform_(module.weight, 0.15, 0.45)  # larger ones magnify what is rounded
            nn.init.normal_(module.bias, 0.0, 0.2)
        if isinstance(module, DCNv3):  # begins with 0: as if there were no memory
            nn.init.normal_(module.offset.weight)
            nn.init.normal_(module.mask.weight)
    for layer in score_layers(made):
        nn.init.normal_(layer.bias, -0.5, 0.2)
    with torch.no_grad():
        for _ in range(3):
            made.network(batch(4)[0].float())
    made.conf = CONF
    return made.eval()


@functools.cache
def fast(memory: str = "gru"):
    return models.optimize(model(memory))


@pytest.fixture(params=MEMORIES)
def memory(request):
    return request.param


def film(count, size_hw=(48, 64), seed=0):
    """Frames through which noise moves."""
    noise = np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), np.uint8)
    return [np.roll(noise, 3 * number, axis=1) for number in range(count)]


def check_equal(one: dict, other: dict, within=1e-5):
    """In whatever order the equally good ones stand."""
    assert len(one["scores"]) > 3
    assert torch.equal(one["labels"].sort()[0], other["labels"].sort()[0])
    assert torch.allclose(one["scores"], other["scores"], atol=within)
    boxes, expected = (each["boxes"].sort(dim=0)[0] for each in (one, other))
    assert torch.allclose(boxes, expected, atol=64 * within)


# ---- detect_video ----


def test_the_state_goes_along(memory):
    found = list(model(memory).detect_video(film(3)))
    alone = [model(memory).detect(image) for image in film(3)]
    check_equal(found[0], alone[0])
    for one, other in zip(found[1:], alone[1:], strict=True):
        assert (one["scores"][:5] - other["scores"][:5]).abs().max() > 1e-4
    state = None
    for image, one in zip(film(3), found, strict=True):
        with torch.inference_mode():
            batch, sizes = model(memory).prepare([image])
            expected, state = model(memory).step(batch, sizes, state)
        check_equal(one, model(memory).restore(expected, [image])[0])


def test_frames_are_taken_as_they_come():
    taken = []

    def frames():
        for number, image in enumerate(film(3)):
            taken.append(number)
            yield image

    found = model().detect_video(frames())
    for number in range(3):
        next(found)
        assert taken == list(range(number + 1))
    assert next(found, None) is None


def test_another_size_begins_anew():
    frames = [*film(2), *film(2, (64, 40)), *film(1)]
    found = list(model().detect_video(frames))
    check_equal(found[3], list(model().detect_video(frames[2:4]))[1])
    check_equal(found[4], model().detect(frames[4]))


def test_an_image_detector_sees_each_frame_for_itself():
    detector = settled("yolox-nano").eval()
    assert not detector.remembers and model().remembers
    for image, found in zip(film(3), detector.detect_video(film(3)), strict=True):
        assert all(torch.equal(found[key], value) for key, value in detector.detect(image).items())


def test_tiles_have_no_memory():
    with pytest.raises(UserError, match="--slice: this model remembers"):
        tiles.finder(model(), 32, 0.2, 0.3)
    assert tiles.finder(model(), None, 0.2, 0.3) == model().detect


# ---- several videos, and models made fast ----


@torch.inference_mode()
def lock_step(detector, videos):
    """For each frame of videos that go on side by side, row by row: (detections, [state]). A video
    is a list of films, one after the other."""
    rows = [sum(video, []) for video in videos]
    starts = [np.cumsum([0, *map(len, video)]).tolist() for video in videos]
    found, state = [], None
    for t in range(len(rows[0])):
        begins = torch.tensor([t in row for row in starts])
        images, sizes = detector.prepare([row[t] for row in rows])
        detections, state = detector.step(images, sizes, state, begins)
        rows_of_state = [[x[row] for x in state] for row in range(len(rows))]
        found.append(list(zip(detections, rows_of_state, strict=True)))
    return found


def check_frames(found, expected):
    """What was found in frames is the same, and what is remembered, but for rounding."""
    for (one, state), (other, plain) in zip(found, expected, strict=True):
        check_equal(one, other)
        for x, y in zip(state, plain, strict=True):
            assert y.norm() > 0 and (x - y).norm() < 1e-5 * y.norm()


@pytest.mark.parametrize("made", [model, fast])
def test_interleaved_videos_are_separate_ones(made, memory):
    """Three in two rows: one begins where another has ended."""
    first, second, third = film(2, seed=1), film(5, seed=2), film(3, seed=3)
    rows = lock_step(made(memory), [[first, third], [second]])
    alone = [
        [row for (row,) in lock_step(made(memory), [[video]])] for video in (first, third, second)
    ]
    check_frames([frame[0] for frame in rows], alone[0] + alone[1])
    check_frames([frame[1] for frame in rows], alone[2])


def test_fast_models_remember_the_same(memory, capsys):
    assert models.optimize(model(memory)).square is False and capsys.readouterr().out == ""
    plain, quick = (lock_step(each(memory), [[film(5, (64, 64))]]) for each in (model, fast))
    check_frames([frame for (frame,) in quick], [frame for (frame,) in plain])


def test_a_memory_that_is_not_taken_over_is_caught(capsys, monkeypatch):
    """On the first frame it is empty: only the second tells."""

    def forgetful(detector):
        fused = fuse(detector)
        for level in fused.memory.levels:
            for conv in (level.gru.gates, level.gru.candidate):
                conv.weight[:, : conv.out_channels // 2] = 0
        return fused

    monkeypatch.setattr(MODULE, "fuse", forgetful)
    models.optimize(model())
    assert "warning: optimized in float32" in capsys.readouterr().out


@pytest.mark.skipif(not cpu_computes_bf16(), reason="this CPU has no bfloat16")
def test_half_keeps_the_memory_in_float32(memory, capsys):
    half = models.optimize(model(memory), half=True)
    assert half.pixel_mean.dtype == torch.bfloat16 and capsys.readouterr().out == ""
    state, exact = None, None
    for image in film(4, (64, 64)):
        with torch.inference_mode():
            batch, sizes = half.prepare([image])
            _, state = half.step(batch, sizes, state)
            _, exact = model(memory).step(batch, sizes, exact)
    assert {x.dtype for x in state} == {torch.float32}
    for one, other in zip(state, exact, strict=True):
        assert (one - other).norm() < 0.1 * other.norm()


@packs
@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_packed_convolutions_of_any_size(bias):
    """Also of more sizes than layouts are kept for, with a bias or without."""
    conv = nn.Conv2d(24, 40, 3, padding=1, bias=bias)
    packed = PackedConv(conv, torch.float32)
    for side in (5, 8, 11, 13, 20, 26, 33, 40, 5):
        x = torch.randn(2, 24, side, side + 1)
        assert torch.allclose(packed(x), conv(x), atol=1e-5)
    assert len(packed.packed) == LAYOUTS
    assert any(each.bias is None for each in fast("mstf").modules() if type(each) is PackedConv)


# ---- demo.py ----


def test_each_video_is_played_with_a_finder_of_its_own(tmp_path):
    with Writer(tmp_path / "film", 25) as writer:
        for image in film(3):
            writer.write(image)
    seen = []

    def finder():
        own = []
        seen.append(own)

        def detect(image):
            own.append(image)
            return {"scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long)}

        return detect

    player = Playback(finder, lambda image, _: image, Results(("a",)), threshold=0.3)
    for _ in range(2):
        player.play(Video(str(writer.path)), "film")
    assert [len(own) for own in seen] == [3, 3]


def test_pictures_of_a_folder_are_a_video(tmp_path):
    names = [
        "b/x_10.png",
        "a/f9.png",
        "a/f10.png",
        "b/x_9.png",
        "a/f8.png",
        "c/no.png",
        "b/x_90.png",
    ]
    paths = [tmp_path / name for name in names]
    found = [[names[index] for index in video] for video in videos_of(paths)]
    assert found == [
        ["b/x_9.png", "b/x_10.png"],
        ["b/x_90.png"],  # a jump
        ["a/f8.png", "a/f9.png", "a/f10.png"],
        ["c/no.png"],
    ]
    doubles = [tmp_path / name for name in ("f_1.png", "f_2.png", "f_1.jpg")]
    assert videos_of(doubles) == [[0, 2, 1]]  # by name, where two have a number


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Calls demo.py in `tmp_path`; the objects' scores by file, and what was said."""
    monkeypatch.chdir(tmp_path)
    call = Call(monkeypatch, capfd, tmp_path)

    def run(*flags):
        code, said, err = call("demo", *flags, "--save", "out", "--save_json", "--device", "cpu")
        if code:
            return code, err
        written = json.loads((tmp_path / "out" / "detections.json").read_text())
        scores = {
            (each["file"], each.get("frame")): [o["score"] for o in each["objects"]]
            for each in written
        }
        return scores, said

    return run


@pytest.fixture(scope="module")
def weight(tmp_path_factory):
    path = tmp_path_factory.mktemp("weight") / "w.pth"
    recipe = recipes.as_dict(recipes.with_sides(recipes.RECIPES["yoloft-nano"], SIZE))
    known = {"recipe": recipe, "classes": list(CLASSES)}
    checkpoint.save(path, {"model": model().state_dict(), **known})
    return path


def expected(weight, videos):
    """The scores of the frames of each video, as an optimized model finds them."""
    detector = models.optimize(models.load(weight, conf=CONF))
    return [
        [pytest.approx(f["scores"].tolist(), abs=2e-5) for f in detector.detect_video(video)]
        for video in videos
    ]


def test_the_frames_of_a_film_in_demo(run, tmp_path, weight):
    with Writer(tmp_path / "film", 25) as writer:
        for image in film(6):
            writer.write(image)
    flags = ["--source", writer.path, "--weight", weight, "--conf", CONF]
    frames = [image for _, image in Video(str(writer.path)).frames()]
    (every_one,) = expected(weight, [frames])
    scores, said = run(*flags)
    assert list(scores.values()) == every_one and "6 images" in said
    assert Video(str(tmp_path / "out" / writer.path.name)).count == 6
    (third,) = expected(weight, [frames[::3]])
    scores, _ = run(*flags, "--every", 3)
    assert scores == {(writer.path.name, 0): third[0], (writer.path.name, 3): third[1]}
    assert len(third[1].expected) > 3
    assert third[1].expected != pytest.approx(every_one[3].expected, abs=1e-3)
    code, err = run(*flags, "--slice", 32)
    assert code == 2 and "--slice: this model remembers" in err


def test_folders_of_frames_in_demo(run, tmp_path, weight):
    videos = {"one": film(3, seed=1), "two": film(2, seed=2)}
    for name, frames in videos.items():
        (tmp_path / "set" / name).mkdir(parents=True)
        for number, image in enumerate(frames, start=9):
            cv2.imwrite(str(tmp_path / "set" / name / f"{number}.png"), image)
    flags = ["--source", "set", "--weight", weight, "--conf", CONF]
    scores, said = run(*flags)
    assert "5 pictures are taken for the frames of 2 videos" in said and "--stills" in said
    found = expected(weight, videos.values())
    names = [f"{name}/{number + 9}.png" for name in videos for number in range(len(videos[name]))]
    assert scores == dict(zip([(name, None) for name in names], sum(found, []), strict=True))
    alone, said = run(*flags, "--stills")
    assert "taken for" not in said and alone.keys() == scores.keys()
    (stills,) = zip(
        *expected(weight, [[image] for v in videos.values() for image in v]), strict=True
    )
    assert [alone[name, None] for name in names] == list(stills)
    few, _ = run(*flags, "--every", 2)
    assert [name for name, _ in few] == [names[0], names[2], names[3]]
