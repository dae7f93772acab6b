"""Recipes: the stages' lengths, the round trip through a checkpoint, what short runs change."""

from dataclasses import replace

import pytest

import recipes
from recipes import RECIPES, for_dataset, from_dict, total_epochs, with_epochs, with_img_size


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_its_checkpoint_form(name):
    recipe = RECIPES[name]
    assert recipe.version == name
    assert from_dict(recipes.as_dict(recipe)) == recipe


def test_the_published_schedule_is_285_augmented_and_15_plain_epochs():
    for recipe in RECIPES.values():
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


def test_one_epoch_is_one_epoch():
    assert total_epochs(with_epochs(RECIPES["yolox-nano"], 1)) == 1


def test_the_multi_scale_range_follows_the_size():
    nano = with_img_size(RECIPES["yolox-nano"], 208)
    assert nano.multi_scale == (160, 320)
    synthetic = for_dataset(RECIPES["yolox-nano"], "synthetic")
    assert with_img_size(synthetic, 448).multi_scale == (320, 704)
    short, _ = recipes.fit_to_length(synthetic, 500)
    assert short.multi_scale == (192, 256)


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
