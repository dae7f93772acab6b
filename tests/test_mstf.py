"""MSTF's memory, gradients and windows; golden_mstf.py compares its numbers with the reference."""

import json
from pathlib import Path

import pytest
import torch
from golden.fill import fill_state

from models.mstf import MSTF, REFERENCE_NAMES
from models.names import pairs, renamed, rules
from models.yoloft_names import with_joint_gates

CHANNELS, HIDDEN, RADIUS = (6, 8, 10), 8, 1
IMAGE_HW = (64, 96)
SIZES = (8, 12), (4, 6), (2, 3)
GOLDEN = Path(__file__).parent / "golden" / "yoloft_s_mstf.json"


def build(**options) -> MSTF:
    torch.manual_seed(0)
    return MSTF(CHANNELS, hidden=HIDDEN, radius=RADIUS, **options)


def frame(seed, batch=2, dtype=torch.float32):
    random = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, channels, *size, generator=random, dtype=dtype)
        for channels, size in zip(CHANNELS, SIZES, strict=True)
    ]


def together(*videos):
    """Maps or states of several videos as rows of one batch."""
    return [torch.cat(rows) for rows in zip(*videos, strict=True)]


def near(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def run(model, frames, state=None):
    """(all fused maps, the last state)."""
    fused = []
    if state is None:
        finest = frames[0][0]
        start = model.example_state(len(finest), IMAGE_HW, finest.device)
        state = [zeros.to(finest.dtype) for zeros in start]
    for maps in frames:
        found, state = model(maps, state)
        fused += found
    return fused, state


# ---- memory ----


@torch.no_grad()
def test_maps_keep_their_shapes_and_the_memory_too():
    model, maps = build(), frame(0)
    start = model.example_state(2, IMAGE_HW, torch.device("cpu"))
    fused, state = model(maps, start)
    assert [f.shape for f in fused] == [m.shape for m in maps]
    half = HIDDEN // 2
    widths = (half, half, half, half, half, half, 2, 2, 2)
    wanted = [(2, c, *SIZES[index % 3]) for index, c in enumerate(widths)]
    assert [tuple(s.shape) for s in state] == [*wanted, (2, 1, 1, 1)]
    assert [s.shape for s in start] == [s.shape for s in state]


@torch.no_grad()
def test_a_first_frame_is_its_own_predecessor():
    model, maps = build(), frame(0)
    features = [
        layer(fmap)[:, HIDDEN // 2 :] for layer, fmap in zip(model.enter, maps, strict=True)
    ]
    still = [torch.zeros(2, 2, *size) for size in SIZES]
    memory = [f.tanh() for f in features]
    given = (*features, *memory, *still, torch.ones(2, 1, 1, 1))
    fused, state = run(model, [maps])
    wanted, wanted_state = run(model, [maps], given)
    near((*fused, *state), (*wanted, *wanted_state))
    near(state[:3], features)


@torch.no_grad()
def test_memory_changes_what_is_seen_and_motion_adds_up():
    model = build()
    _, state = run(model, [frame(0)])
    fused, later = run(model, [frame(1)], state)
    alone, first = run(model, [frame(1)])
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(fused, alone, strict=True))
    near(later[:3], first[:3])  # the features are the frame's own
    assert all((later[k] - state[k]).abs().max() > 1e-3 for k in range(9))


@torch.no_grad()
def test_rows_of_a_batch_are_videos_of_their_own_and_start_where_their_memory_is_zero():
    model = build()
    first, second = (
        [frame(seed, batch=1) for seed in (0, 1, 2)],
        [frame(seed, 1) for seed in (3, 4)],
    )
    wanted, state = run(model, first)
    others, other_state = run(model, second)

    _, middle = run(model, first[:1])
    cleared = [torch.cat((s, torch.zeros_like(s))) for s in middle]  # the second video starts later
    both = [together(*pair) for pair in zip(first[1:], second, strict=True)]
    found, found_state = run(model, both, tuple(cleared))
    near(found, together(wanted[3:], others))
    near(found_state, together(state, other_state))


# ---- windows ----


def planes(model, level, position, features, previous, flows):
    """{level of the map: window [R, R] (columns, rows)} that a query reads, in products."""
    found = model.lookup(level, features[level], previous, flows[level])
    x, y = position
    side = 2 * RADIUS + 1
    return found[0, :, y, x].view(3, side, side) * (HIDDEN // 2) ** 0.5


def window(query, fmap, x, y):
    """Products of a query [D] with the pixels around (x, y) of a map [D, H, W], 0 outside."""
    side = range(-RADIUS, RADIUS + 1)
    height, width = fmap.shape[1:]
    values = [
        [
            (query @ fmap[:, y + j, x + i]).item()
            if 0 <= x + i < width and 0 <= y + j < height
            else 0.0
            for j in side
        ]
        for i in side
    ]
    return torch.tensor(values)


# Query level, its pixel (x, y), its motion there, and per level where its windows belong (None:
# between pixels), and where those of the released code lie.
PLACES = [
    (0, (4, 4), (0, 0), ((4, 4), (2, 2), (1, 1)), ((4, 4), (2, 2), (1, 1))),
    (0, (2, 7), (2, -3), ((4, 4), (2, 2), (1, 1)), ((4, 4), (2, 2), (1, 1))),
    (1, (4, 2), (0, 0), ((8, 4), (4, 2), (2, 1)), ((4, 2), (2, 1), None)),
    (2, (2, 1), (0, 0), ((8, 4), (4, 2), (2, 1)), ((2, 1), None, None)),
    (2, (1, 1), (1, -1), ((8, 0), (4, 0), (2, 0)), ((2, 0), (1, 0), None)),
]


@torch.no_grad()
@pytest.mark.parametrize("as_released", [False, True])
@pytest.mark.parametrize("level, position, motion, right, released", PLACES)
def test_windows_lie_where_the_motion_points(level, position, motion, right, released, as_released):
    model = build(as_released=as_released)
    random = torch.Generator().manual_seed(5)
    features, previous = (
        [torch.randn(1, HIDDEN // 2, *size, generator=random) for size in SIZES] for _ in range(2)
    )
    flows = [torch.zeros(1, 2, *size) for size in SIZES]
    x, y = position
    flows[level][0, :, y, x] = torch.tensor(motion, dtype=torch.float32)
    found = planes(model, level, position, features, previous, flows)
    query = features[level][0, :, y, x]
    for index, place in enumerate(released if as_released else right):
        if place:
            near([found[index]], [window(query, previous[index][0], *place)])


# ---- gradients ----


def loss_of(model, frames):
    fused, _ = run(model, frames)
    weights = torch.Generator().manual_seed(9)
    return sum((f * torch.randn(f.shape, generator=weights, dtype=f.dtype)).sum() for f in fused)


HEAD = {"update.head1.weight", "update.head2.weight"}


def test_with_two_frames_every_weight_learns_with_one_none_lacks_a_gradient():
    model = build()
    loss_of(model, [frame(0), frame(1)]).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    model.zero_grad()
    loss_of(model, [frame(0)]).backward()
    still = {name for name, p in model.named_parameters() if p.grad.abs().max() == 0}
    assert still == HEAD | {"update.flow1.weight", "update.flow2.weight"}  # of what stands still


def test_the_gradient_through_windows_motion_and_memory_is_the_derivative():
    model = build().double()
    frames = [frame(seed, 1, torch.float64) for seed in (0, 1, 2)]
    for maps in frames:
        for fmap in maps:
            fmap.requires_grad_()
    leaves = [*model.parameters(), *(fmap for maps in frames for fmap in maps)]
    grads = torch.autograd.grad(loss_of(model, frames), leaves)
    random = torch.Generator().manual_seed(3)
    step = [torch.randn(x.shape, generator=random, dtype=x.dtype) for x in leaves]
    wanted = sum((g * s).sum() for g, s in zip(grads, step, strict=True)).item()
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            for leaf, s in zip(leaves, step, strict=True):
                leaf.add_(s, alpha=sign * 1e-7)
            values.append(loss_of(model, frames).item())
            for leaf, s in zip(leaves, step, strict=True):
                leaf.sub_(s, alpha=sign * 1e-7)
    assert (values[0] - values[1]) / 2e-7 == pytest.approx(wanted, rel=1e-4)


def test_as_released_no_gradient_passes_windows_and_memory():
    model = build(as_released=True)
    maps = frame(0)
    for fmap in maps:
        fmap.requires_grad_()
    _, state = run(model, [maps])
    assert not any(tensor.requires_grad for tensor in state)
    loss_of(model, [frame(0), frame(1)]).backward()
    named = dict(model.named_parameters())
    assert {name for name, p in named.items() if p.grad is None} == HEAD
    assert {name for name, p in named.items() if not p.requires_grad} == HEAD


# ---- number formats, names ----


@torch.no_grad()
def test_autocast_changes_nothing_and_motion_stays_wide_in_half_precision():
    model, frames = build(), [frame(0), frame(1)]
    wanted, state = run(model, frames)
    with torch.autocast("cpu", torch.bfloat16):
        found, found_state = run(model, frames)
    for one, other in zip((*found, *found_state), (*wanted, *state), strict=True):
        assert torch.equal(one, other)

    found, found_state = run(model.bfloat16(), frames)
    assert all(fmap.dtype == torch.bfloat16 for fmap in found)
    assert all(flow.dtype == torch.float32 for flow in found_state[6:9])
    for one, other in zip(found, wanted, strict=True):
        assert (one.float() - other).norm() < 0.05 * other.norm()


def test_released_names_become_ours():
    shapes = json.loads(GOLDEN.read_text())["state"]
    filled = fill_state({n: s for n, s in shapes.items() if n.startswith("model.12.")})
    state = {name: torch.from_numpy(value) for name, value in filled.items()}
    to_ours = rules((theirs, ours) for ours, theirs in pairs(REFERENCE_NAMES, "", "model.12."))
    with torch.device("meta"):
        model = MSTF((128, 256, 512), hidden=64, radius=4)
    named = with_joint_gates({renamed(name, to_ours): value for name, value in state.items()})
    found = {name: tuple(value.shape) for name, value in named.items()}
    assert found == {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_exported_it_computes_the_same():
    model, frames = build().eval(), [frame(0), frame(1)]
    with torch.no_grad():
        wanted, state = run(model, frames)
        start = model.example_state(2, IMAGE_HW, torch.device("cpu"))
        exported = torch.export.export(model, (frames[0], start)).module()
        found, found_state = run(exported, frames, start)
    near((*found, *found_state), (*wanted, *state))
