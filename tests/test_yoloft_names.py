"""YOLOFT's released checkpoints: names, and which network they hold."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import models
from models import convert, yoloft_names
from recipes import RECIPES
from tests.detectors import CLASSES
from utils.checkpoint import load_weights
from utils.errors import UserError


def reference_state(memory: str, p2: bool) -> tuple[dict, dict]:
    """(our weights, the same under the names of the release), by the converter's tables turned
    round."""
    first = 2 if memory == "mstf" else 3
    recipe = RECIPES["yoloft-mstf-s" if memory == "mstf" else "yoloft-nano"]
    options = replace(recipe.model, memory=memory, p2=p2, dcn=memory == "deform", radius=3)
    ours = models.build_model(replace(recipe, model=options), CLASSES).state_dict()
    names = (*yoloft_names.MEMORIES[memory], *yoloft_names.other_names(first, 4 if p2 else 3))
    to_theirs = yoloft_names.rules(yoloft_names.pairs(names))
    theirs = {}
    for name, value in ours.items():
        name = yoloft_names.renamed(name, to_theirs)
        part = {"rows.": "1", "columns.": "2"}
        digit = next((d for word, d in part.items() if word in name), "")
        for word in part:
            name = name.replace(word, "")
        if ".gates." in name:
            z, r = value.chunk(2)
            theirs[name.replace("gates", f"convz{digit}")] = z
            theirs[name.replace("gates", f"convr{digit}")] = r
        else:
            theirs[name.replace("candidate", f"convq{digit}")] = value
    assert all(name.startswith("model.") for name in theirs)
    return ours, {**theirs, "model.17.init_pos": torch.zeros(1, 32, 1, 1)}


@pytest.mark.parametrize(
    ("memory", "p2"),
    [("gru", False), ("gru", True), ("deform", False), ("deform", True), ("mstf", False)],
)
def test_released_names_become_ours(memory, p2):
    ours, theirs = reference_state(memory, p2)
    state, recipe = convert.convert(theirs)
    assert state.keys() == ours.keys()
    assert all(torch.equal(state[name], ours[name]) for name in ours)
    options = recipe["model"]
    if memory == "mstf":
        assert (recipe["version"], recipe["backbone"]) == ("yoloft-mstf-s", "c2f-v8-s")
        assert (options["hidden"], options["radius"]) == (64, 3)
        assert options["as_released"] is True
    else:
        assert (recipe["detector"], recipe["backbone"]) == ("yoloft", "c2f-nano")
        assert (options["memory"], options["p2"]) == (memory, p2)
    rebuilt = models.build_model(SimpleNamespace(**recipe), CLASSES)
    assert load_weights(rebuilt, state) == []
    assert convert.class_names(state, recipe, {}) == ("class0", "class1", "class2")


def test_networks_without_a_place_here_are_refused():
    _, theirs = reference_state("gru", False)
    few = {name: value for name, value in theirs.items() if ".cv3.2." not in name}
    with pytest.raises(UserError, match="head is not known here"):
        convert.convert(few)
    stem = {"model.3.conv.weight": torch.zeros(20, 3, 3, 3)}
    with pytest.raises(UserError, match="20 channels in its first map and 2 blocks"):
        convert.convert({**theirs, **stem})
    assert yoloft_names.convert({"model.0.conv.weight": torch.zeros(1)}, {}) is None


def test_versions_are_those_of_the_recipes():
    for name, recipe in RECIPES.items():
        if recipe.detector != "yoloft" or recipe.model.memory == "mstf" or name == "yoloft-nano-p2":
            continue  # the last is of no published network
        options, size = recipe.model, recipe.backbone.removeprefix("c2f-")
        assert yoloft_names.SCALES[size] == (options.depth, options.width)
        known = (size, options.memory, options.dcn, options.p2)
        assert yoloft_names.VERSIONS.get(known, f"yoloft-{size}") == name
