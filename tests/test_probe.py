"""The linear probe, and the numbers of a pretraining."""

import signal

import numpy as np
import pytest
import torch

from utils.interrupt import Interrupted, StopFlag
from utils.patch_scores import CenterScores, ContrastScores, Probe, score
from utils.probe import balanced_accuracy, linear_probe


def test_balanced_accuracy_weighs_classes_alike():
    labels = np.array([0, 0, 0, 0, 1])
    assert balanced_accuracy(labels, np.zeros(5, int)) == 0.5
    assert balanced_accuracy(labels, labels) == 1.0
    assert balanced_accuracy(labels[:0], labels[:0]) == -1.0


def test_the_probe_finds_what_is_linear_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 5)) * (1, 100, 1, 1, 0.01)
    labels, folds = (features[:, 1] > 20).astype(int), np.arange(400) % 4
    assert linear_probe(features, labels, folds) > 0.9
    assert 0.4 < linear_probe(rng.normal(size=(400, 5)), labels, folds) < 0.6
    three = np.digitize(features[:, 1], (-80, 80))
    assert linear_probe(np.abs(features) + features, three, folds) > 0.5
    assert linear_probe(features, np.zeros(400, int), folds) == -1.0  # one class alone


def targets(images, labels):
    return {
        "labels": torch.tensor(labels),
        "valid": torch.tensor(labels) >= 0,
        "image_id": torch.tensor(images),
    }


def test_the_probe_never_judges_an_image_by_itself():
    # Each image's patches differ from all others' by image alone, which tells nothing of others.
    probe, rng = Probe(), np.random.default_rng(0)
    for image in range(24):
        place = torch.tensor(rng.normal(size=(1, 1, 8)), dtype=torch.float32) * 5
        probe.add({"embedded": place.repeat(1, 2, 1)}, targets([image], [[image % 2, -1]]))
    assert probe.compute()["probe"] < 0.85
    exact = Probe()
    for image in range(24):
        value = torch.full((1, 1, 8), float(image % 3))
        exact.add({"embedded": value}, targets([image], [[image % 3]]))
    assert exact.compute() == {"probe": 1.0, "class_probe": 1.0}


def test_scores_of_a_classifier_by_hand():
    scores = CenterScores()
    known = torch.eye(3)[torch.tensor([[0, 0, 1, 2]])]
    outputs = {"scores": known, "embedded": torch.zeros(1, 4, 2)}
    scores.add(outputs, targets([7], [[0, 0, 0, -1]]))
    numbers = scores.compute()
    assert numbers["accuracy"] == pytest.approx(2 / 3)
    assert numbers["balanced"] == pytest.approx(2 / 3) and numbers["probe"] == -1


def test_scores_without_labels_by_hand():
    scores = ContrastScores(("anchor", "view", "near", "far"))
    z = torch.eye(4)
    compared = torch.stack(
        [
            torch.stack([z[0], z[0], z[0], z[1]]),  # its neighbour is closer than the far one
            torch.stack([z[1], z[0], z[2], z[1]]),  # its view is another's, its far one closer
        ]
    )
    for image in (0, 1):
        scores.add({"compared": compared[image : image + 1]}, targets([image], [[0] * 4]))
    numbers = scores.compute()
    assert numbers["match"] == 0.5 and numbers["closer"] == 0.5 and numbers["others"] == 0.0
    collapsed = ContrastScores(("anchor", "view"))
    for image in range(5):
        one = torch.tensor([1.0, 0, 0, 0]).repeat(1, 2, 1)
        collapsed.add({"compared": one}, targets([image], [[0, 0]]))
    numbers = collapsed.compute()
    assert numbers["spread"] == 0.0 and numbers["others"] == 1.0 and numbers["closer"] == -1.0


class Batches:
    """A loader of so many batches, each of one image."""

    per_epoch = 5

    def batches(self, _epoch):
        for image in range(self.per_epoch):
            yield torch.zeros(1, 2, 3, 4, 4), targets([image], [[0, 0]])


class Network(torch.nn.Module):
    def outputs(self, images, regions):
        return {"compared": images.mean(dim=(3, 4))}


def test_judging_ends_where_a_run_is_stopped():
    scores, stop = ContrastScores(("anchor", "view")), StopFlag()
    assert score(Network(), Batches(), scores, "cpu", stop).compute()["spread"] == 0.0
    stop.signum = signal.SIGINT
    with pytest.raises(Interrupted):
        score(Network(), Batches(), scores, "cpu", stop)
