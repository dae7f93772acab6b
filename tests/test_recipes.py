"""Recipes: the stages' lengths, the round trip through a checkpoint, what short runs change."""

from dataclasses import fields, replace

import pytest

import recipes
from recipes import RECIPES, for_dataset, from_dict, total_epochs, with_epochs, with_sides
from utils import optim


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_its_checkpoint_form(name):
    recipe = RECIPES[name]
    assert recipe.version == name
    assert from_dict(recipes.as_dict(recipe)) == recipe


def test_yolox_schedule_is_285_augmented_and_15_plain_epochs():
    for recipe in (recipe for recipe in RECIPES.values() if recipe.detector == "yolox"):
        assert [stage.epochs for stage in recipe.stages] == [285, 15]
        assert recipe.stages[0].augment.mosaic > 0
        assert recipe.stages[1].augment.mosaic == recipe.stages[1].augment.mixup == 0
        assert recipe.stages[1].weights == (("l1", 1.0),)


@pytest.mark.parametrize(("epochs", "lengths"), [(300, [285, 15]), (40, [30, 10]), (10, [8, 2])])
def test_a_shorter_run_keeps_a_plain_end(epochs, lengths):
    assert [stage.epochs for stage in with_epochs(RECIPES["yolox-s"], epochs).stages] == lengths


@pytest.mark.parametrize(("epochs", "plain"), [(10, 0), (10, 3), (10, 10), (1, 1), (7, 6)])
def test_the_plain_stage_has_exactly_the_stated_length(epochs, plain):
    stages = with_epochs(RECIPES["yolox-s"], epochs, plain).stages
    assert sum(stage.epochs for stage in stages) == epochs
    assert sum(stage.epochs for stage in stages if not stage.augment.mosaic) == plain


CSP = "yolof-cspdarknet53-c5"  # one stage, with mosaic


@pytest.mark.parametrize(("plain", "lengths"), [(None, [10]), (0, [10]), (3, [7, 3]), (12, [10])])
def test_a_plain_end_of_a_single_stage(plain, lengths):
    [only] = RECIPES[CSP].stages
    stages = with_epochs(RECIPES[CSP], 10, plain).stages
    assert [stage.epochs for stage in stages] == lengths
    if plain:
        assert stages[-1].text == "plain images"
        assert stages[-1].augment == replace(only.augment, mosaic=0)
    if lengths != [10] or not plain:
        assert stages[0].augment == only.augment


def test_where_a_plain_end_means_nothing():
    assert recipes.can_end_plain(RECIPES["yolox-s"]) and recipes.can_end_plain(RECIPES[CSP])
    plain = RECIPES["yolof-r50-c5"]
    assert not recipes.can_end_plain(plain)
    assert with_epochs(plain, 12, 4) == plain


def test_one_epoch_is_one_epoch():
    assert total_epochs(with_epochs(RECIPES["yolox-nano"], 1)) == 1


def test_the_multi_scale_range_follows_the_size():
    nano = with_sides(RECIPES["yolox-nano"], 208)
    assert nano.multi_scale == (160, 320)
    synthetic = for_dataset(RECIPES["yolox-nano"], "synthetic")
    assert with_sides(synthetic, 448).multi_scale == (320, 704)
    short, _ = recipes.fit_to_length(synthetic, 500)
    assert short.multi_scale == (192, 256)
    assert with_sides(RECIPES[CSP], 640, 1000).multi_scale == (512, 768)
    assert with_sides(RECIPES[CSP], 640, 700).multi_scale == (512, 672)  # none beyond the longest


def test_a_long_run_is_left_alone_and_flags_win_over_the_short_runs_changes():
    recipe = RECIPES["yolox-s"]
    assert recipes.fit_to_length(recipe, 500_000) == (recipe, [])
    short, said = recipes.fit_to_length(
        replace(recipe, grad_clip=1.0), 300, frozenset({"grad_clip"})
    )
    assert (short.optimizer, short.grad_clip) == ("adamw", 1.0)
    assert short.ema_ramp < recipe.ema_ramp and "adamw" in said[0]
    kept, _ = recipes.fit_to_length(recipe, 300, frozenset({"optimizer"}))
    assert (kept.optimizer, kept.lr, kept.base_batch) == ("sgd", 0.01, 64)
    slower, _ = recipes.fit_to_length(replace(recipe, lr=1e-4), 300, frozenset({"lr"}))
    assert (slower.optimizer, slower.lr, slower.base_batch) == ("adamw", 1e-4, 8)


def test_yolof_recipes_are_the_published_ones():
    c5, dc5 = RECIPES["yolof-r50-c5"], RECIPES["yolof-r50-dc5"]
    assert recipes.DEFAULT == c5.version and c5.sides == (800, 1333)
    assert (c5.model.topk, c5.model.pos_thresh, len(c5.model.anchor_sizes)) == (4, 0.15, 5)
    assert (dc5.model.topk, dc5.model.pos_thresh, len(dc5.model.anchor_sizes)) == (8, 0.1, 6)
    assert (c5.lr, c5.base_batch, c5.part_lr) == (0.12, 64, (("backbone", 0.334),))
    # 22500 iterations of 64 images: 15000 and 20000 of them, after 1500 of warm-up.
    assert [round(share * 22500) for share in c5.schedule.steps] == [15000, 20000]
    assert round(c5.schedule.warmup * 117_266 / 64) == 1500
    assert c5.stages[0].augment.shift == 32 and not c5.stages[0].augment.mosaic


def test_voc_is_trained_as_tinydet_does_it():
    recipe = for_dataset(RECIPES["yolof-r50-c5"], "voc")
    assert recipe.sides == (600, 1000) and total_epochs(recipe) == 36
    assert recipe.stages[0].augment.shift == 0
    updates = [5011 // 16] * 36
    lr, _ = optim.scaled_lr(recipe.lr, recipe.base_batch, 16)
    plan = optim.schedule_of(recipe, updates, lr)
    assert lr == pytest.approx(0.03)
    assert plan["warmup"] == pytest.approx(2000, abs=10)
    assert plan["steps"] == pytest.approx((24 * 313, 33 * 313), abs=40)


@pytest.mark.parametrize("sides", [(256, 256), (500, 800)])
def test_on_voc_a_checkpoints_own_sides_stay(sides):
    recipe = with_sides(RECIPES["yolof-r50-c5"], *sides)
    voc = for_dataset(recipe, "voc")
    assert voc.sides == sides and total_epochs(voc) == 36
    assert voc.schedule == for_dataset(RECIPES["yolof-r50-c5"], "voc").schedule
    other = replace(recipe, version="yolof-cspdarknet-nano-c5", backbone="cspdarknet-nano")
    assert for_dataset(other, "voc").sides == sides
    darknet = with_sides(RECIPES[CSP], *sides)
    assert for_dataset(darknet, "voc") == darknet


def test_on_voc_it_is_the_training_that_changes_whatever_the_backbone():
    plain = recipes.with_backbone(RECIPES["yolof-r50-c5"], "cspdarknet53")
    assert for_dataset(plain, "voc").sides == (600, 1000)
    assert total_epochs(for_dataset(plain, "voc")) == 36
    darknets = recipes.with_backbone(RECIPES[CSP], "resnet50")
    assert for_dataset(darknets, "voc") == darknets


def test_on_the_synthetic_set_all_models_take_its_square():
    own = with_sides(RECIPES["yolox-s"], 416)
    for recipe in (own, RECIPES["yolox-s"]):
        synthetic = for_dataset(recipe, "synthetic")
        assert (synthetic.sides, synthetic.multi_scale) == ((224, 224), (160, 352))


def test_a_square_is_asked_for_or_a_shape_kept():
    recipe = RECIPES["yolof-r50-c5"]
    assert recipes.with_sides(recipe, 256).sides == (256, 256)
    assert recipes.with_sides(recipe, 400, 666).sides == (400, 666)
    assert for_dataset(recipe, "synthetic").sides == (224, 224)
    assert for_dataset(recipe, "synthetic").multi_scale == (0, 0)


def test_flags_that_stand_for_several_come_first():
    recipe = RECIPES["yolof-r50-c5"]
    given = {"preset": "seed", "topk": 6, "random_shift": False, "warmup": "linear"}
    seed = recipes.with_flags(recipe, given)
    assert (seed.model.matcher, seed.model.topk, seed.model.head_kernel) == ("l1_topk", 6, 1)
    assert (seed.lr, seed.base_batch, seed.part_lr) == (0.01, 16, ())
    assert seed.stages[0].augment.shift == 0 and seed.schedule.rise == "linear"
    again = recipes.with_flags(seed, {"preset": "official"})
    assert again.model == recipe.model


def test_the_stride_brings_its_anchors_and_a_backbone_its_name():
    recipe = recipes.with_flags(RECIPES["yolof-r50-c5"], {"dc5": True})
    assert recipe == RECIPES["yolof-r50-dc5"]
    nano = recipes.with_backbone(recipe, "cspdarknet-nano")
    assert nano.version == "yolof-cspdarknet-nano-dc5" and nano.model == recipe.model
    other = recipes.with_backbone(RECIPES["yolox-s"], "cspdarknet-m")
    assert other.version == "yolox-cspdarknet-m"  # not yolox-m, whose neck is another
    own = recipes.with_flags(RECIPES["yolof-cspdarknet53-c5"], {"dc5": True})
    assert own == RECIPES["yolof-cspdarknet53-dc5"]


def test_what_starts_untrained_is_not_frozen():
    recipe = recipes.without_weights(RECIPES["yolof-r50-c5"])
    assert not recipe.pretrained and not recipe.model.frozen
    assert recipes.without_weights(RECIPES["yolox-s"]) == RECIPES["yolox-s"]


@pytest.mark.parametrize("kind", [kind for kinds in recipes.FLAGS.values() for kind in kinds])
def test_every_number_among_the_flags_has_bounds(kind):
    for option in fields(kind):
        least, most = option.metadata["least"], option.metadata["most"]
        if type(option.default) in (int, float) and not option.metadata["choices"]:
            assert least <= option.default and (most is None or option.default <= most), option.name
        elif option.name == "split_start":  # epochs, which are counted from 0
            assert (least, most) == (0, None)
        else:
            assert least is most is None, option.name


def test_a_run_of_an_earlier_release_does_not_go_on():
    values = recipes.as_dict(RECIPES["yolox-nano"])
    del values["part_lr"]
    with pytest.raises(ValueError, match="begun by an earlier release.*--weight"):
        from_dict({**values, "backbone_lr": 1.0})


def test_options_other_than_the_recipes_are_named():
    recipe = recipes.without_weights(RECIPES["yolof-r50-c5"])
    assert recipes.changed_options(recipe) == {}
    changed = recipes.with_flags(recipe, {"topk": 6, "dilations": (1, 2)})
    assert recipes.changed_options(changed) == {"dilations": (1, 2), "topk": 6}
    assert recipes.changed_options(RECIPES["yolox-nano"]) == {}


def lengths_of(recipe):
    """(epochs, frames of a clip, its interval, clips of a step, mosaic) of each stage."""
    return [
        (s.epochs, s.clip.length, s.clip.interval, recipes.samples_of(recipe, s), s.augment.mosaic)
        for s in recipe.stages
    ]


def test_the_clip_schedule_of_the_flags():
    coco = recipes.for_dataset(RECIPES["yoloft-s"], "coco")
    assert lengths_of(coco) == [(22, 1, 1, 8, 1.0), (8, 1, 1, 8, 0.0)]
    given = {"split_length": (1, 4), "split_start": (0, 10), "split_batch": ((1, 32), (4, 6))}
    changed = recipes.with_flags(coco, given)
    assert lengths_of(changed) == [(10, 1, 1, 32, 1.0), (12, 4, 1, 6, 1.0), (8, 4, 1, 6, 0.0)]
    assert changed.batch_size == 32 and from_dict(recipes.as_dict(changed)) == changed
    videos = recipes.for_dataset(RECIPES["yoloft-s"], "xsvid")
    assert lengths_of(videos) == [(22, 4, 1, 2, 1.0), (8, 4, 1, 2, 0.0)]
    apart = recipes.with_flags(videos, {"interval": 3, "split_batch": ((4, 5),)})
    assert lengths_of(apart) == [(22, 4, 3, 5, 1.0), (8, 4, 3, 5, 0.0)] and apart.batch_size == 20
    stills = recipes.with_flags(videos, {"split_length": (1,), "split_start": (0,)})
    assert lengths_of(stills) == lengths_of(coco)
    later = recipes.with_flags(changed, {"interval": 2})  # the lengths that the recipe has
    assert lengths_of(later) == [(10, 1, 2, 32, 1.0), (12, 4, 2, 8, 1.0), (8, 4, 2, 8, 0.0)]


def test_more_epochs_leave_the_lengths_of_clips_where_they_were():
    coco = recipes.for_dataset(RECIPES["yoloft-s"], "coco")
    given = {"split_length": (1, 4), "split_start": (0, 10), "split_batch": ((4, 3),)}
    changed = recipes.with_epochs(recipes.with_flags(coco, given), 60)
    expected = [(10, 1, 1, 8, 1.0), (42, 4, 1, 3, 1.0), (8, 4, 1, 3, 0.0)]
    assert lengths_of(changed) == expected
    assert lengths_of(recipes.with_epochs(changed, 30)) == [
        (10, 1, 1, 8, 1.0),
        (13, 4, 1, 3, 1.0),
        (7, 4, 1, 3, 0.0),
    ]
    assert lengths_of(recipes.with_epochs(changed, 8)) == [(6, 1, 1, 8, 1.0), (2, 1, 1, 8, 0.0)]
    late = recipes.with_flags(coco, {"split_length": (1, 4), "split_start": (0, 25)})
    parts = [(23, 1, 1, 8, 1.0), (2, 1, 1, 8, 0.0), (5, 4, 1, 2, 0.0)]
    assert lengths_of(recipes.with_epochs(late, 30)) == parts


@pytest.mark.parametrize(
    "given, words",
    [
        ({"split_length": (1, 4)}, "2 lengths and --split_start 1 epochs"),
        ({"split_length": (1, 4), "split_start": (0, 30)}, "ends after 30 epochs"),
        ({"split_length": (1, 4), "split_start": (2, 5)}, "epochs rise from 0"),
        ({"split_length": (1, 4), "split_start": (0, 0)}, "epochs rise from 0"),
        ({"split_start": (0, 4)}, "beside --split_length"),
        ({"split_length": (4,), "split_batch": ((2, 8),)}, "2:8: no clip"),
        ({"freeze": ("backbone", "memory", "neck", "head")}, "nothing that learns"),
        ({"freeze": ("backbone", "neck", "head"), "temporal_lr": 0.0}, "nothing that learns"),
        ({"freeze": ("memory",), "temporal_lr": 2.0}, "contradict"),
    ],
)
def test_clip_flags_that_make_no_sense(given, words):
    with pytest.raises(ValueError, match=words):
        recipes.with_flags(RECIPES["yoloft-s"], given)


def test_parts_that_learn_at_their_own_rate():
    given = {"freeze": ("backbone", "neck"), "temporal_lr": 3.0, "bptt": 2}
    changed = recipes.with_flags(RECIPES["yoloft-s"], given)
    assert changed.part_lr == (("backbone", 0.0), ("neck", 0.0), ("memory", 3.0))
    assert changed.model.bptt == 2 and from_dict(recipes.as_dict(changed)) == changed
    assert recipes.with_flags(changed, {"temporal_lr": 1.0}).part_lr == changed.part_lr[:2]
