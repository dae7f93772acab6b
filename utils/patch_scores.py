"""How good a pretraining is, measured on patches of images it has not seen.

What `add` takes is a batch: outputs of the network and targets, patches in the first two
dimensions [B, K]. `main` are the names of the numbers that a training prints.
"""

import numpy as np
import torch
from torch import Tensor

from utils import dist
from utils.interrupt import Interrupted, StopFlag
from utils.log import progress
from utils.probe import balanced_accuracy, linear_probe

FOLDS = 4  # parts of the images, each judged by a probe fitted to the others
Numbers = dict[str, float]


class _Columns:
    """Batches of columns, gathered from all processes and joined."""

    def __init__(self):
        self._parts: list[dict[str, np.ndarray]] = []

    def keep(self, columns: dict[str, Tensor]):
        self._parts.append({name: column.cpu().numpy() for name, column in columns.items()})

    def gather(self):
        self._parts = [part for parts in dist.gather_objects(self._parts) for part in parts]

    def joined(self) -> dict[str, np.ndarray]:
        """Each column as a whole, in the order of the images, whatever process had them."""
        whole = {name: np.concatenate([p[name] for p in self._parts]) for name in self._parts[0]}
        order = whole["image_id"].argsort(kind="stable")
        return {name: column[order] for name, column in whole.items()}


class Probe:
    """Linear probes on what a patch is embedded as: objects or background, and the class."""

    main = ("probe",)

    def __init__(self):
        self._columns = _Columns()

    def add(self, outputs: dict[str, Tensor], targets: dict):
        names = ("labels", "valid", "image_id")
        columns = {name: targets[name] for name in names}
        self._columns.keep({**columns, "embedded": outputs["embedded"]})

    def gather(self):
        self._columns.gather()

    def compute(self) -> Numbers:
        """probe and, of several classes, class_probe: balanced accuracies."""
        known = self._columns.joined()
        labels, rows = _rows(known), known["embedded"][known["valid"]]
        images = np.unique(known["image_id"], return_inverse=True)[1]
        folds = np.repeat(images[:, None], known["valid"].shape[1], axis=1)[known["valid"]] % FOLDS
        numbers = {"probe": linear_probe(rows, labels > 0, folds)}
        if labels.max(initial=0) > 1:
            of_objects = labels > 0
            numbers["class_probe"] = linear_probe(
                rows[of_objects], labels[of_objects], folds[of_objects]
            )
        return numbers


class CenterScores:
    """What a classifier of patches says: the share of patches that it knows, and the probe."""

    main = ("balanced", "probe")

    def __init__(self):
        self._columns, self._probe = _Columns(), Probe()

    def add(self, outputs: dict[str, Tensor], targets: dict):
        self._probe.add(outputs, targets)
        columns = {name: targets[name] for name in ("labels", "valid", "image_id")}
        self._columns.keep({**columns, "found": outputs["scores"].argmax(dim=2)})

    def gather(self):
        self._columns.gather()
        self._probe.gather()

    def compute(self) -> Numbers:
        """balanced (mean over the classes), accuracy, and the probe's numbers."""
        known = self._columns.joined()
        labels, found = _rows(known), known["found"][known["valid"]]
        return {
            "balanced": balanced_accuracy(labels, found),
            "accuracy": float((labels == found).mean()) if len(labels) else -1.0,
            **self._probe.compute(),
        }


class ContrastScores:
    """Without labels: does an anchor find its own view among those of all images, are neighbours
    closer to it than far patches, and have the outputs collapsed? The numbers of a `probe`, filled
    by its owner, stand beside these."""

    main = ("match", "spread")

    def __init__(self, roles: tuple[str, ...], probe: Probe | None = None):
        self.roles, self.probe = np.array(roles), probe
        self._columns = _Columns()

    def add(self, outputs: dict[str, Tensor], targets: dict):
        columns = {name: targets[name] for name in ("valid", "image_id")}
        self._columns.keep({**columns, "compared": outputs["compared"]})

    def gather(self):
        self._columns.gather()

    def compute(self) -> Numbers:
        """match: share of anchors whose view is the nearest of all; closer: share of pairs of a
        neighbour and a far patch of one image that are in that order (-1 without); spread: 1 is
        all of the sphere, 0 is one point; others: mean cosine of anchors of different images."""
        known = self._columns.joined()
        z, valid = known["compared"].astype(np.float64), known["valid"]
        anchors, views = z[:, 0], z[:, 1]
        found = (anchors @ views.T).argmax(axis=1)
        alike = anchors @ anchors.T
        count = len(z)
        return {
            "match": float((found == np.arange(count)).mean()),
            "spread": float(spread(torch.from_numpy(z[valid]))),
            "others": float((alike.sum() - alike.trace()) / max(count * (count - 1), 1)),
            "closer": self._closer((z[:, :1] * z).sum(axis=2), valid),
            **(self.probe.compute() if self.probe else {}),
        }

    def _closer(self, alike: np.ndarray, valid: np.ndarray) -> float:
        near, far = (alike[:, self.roles == role] for role in ("near", "far"))
        both = valid[:, self.roles == "near"][:, :, None] & valid[:, self.roles == "far"][:, None]
        order = (near[:, :, None] > far[:, None]) + 0.5 * (near[:, :, None] == far[:, None])
        return float(order[both].mean()) if both.any() else -1.0


def spread(z: Tensor) -> Tensor:
    """How far features [N, Z] of length 1 are spread: their standard deviation in each number, by
    that of even directions. 1 is all of the sphere, 0 is one point: a collapse."""
    return z.std(dim=0, unbiased=False).mean() * z.shape[1] ** 0.5


def _rows(known: dict[str, np.ndarray]) -> np.ndarray:
    """The labels of the patches that are there."""
    return known["labels"][known["valid"]]


@torch.no_grad()
def score(model, loader, scores, device: torch.device, stop: StopFlag | None = None):
    """The scores, filled with the outputs of `model` for the loader's patches of all processes."""
    model.eval()
    batches = progress(loader.batches(0), "evaluating", loader.per_epoch, shown=dist.is_main())
    for images, targets in batches:
        regions = targets["regions"].to(device) if "regions" in targets else None
        scores.add(model.outputs(images.to(device), regions), targets)
        if stop and stop.signum and not dist.is_distributed():
            raise Interrupted(stop.signum)
    scores.gather()
    return scores
