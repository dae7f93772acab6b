"""Deterministic weights for comparing two implementations of one network.

Storing a 40-million-parameter checkpoint only to compare two forward passes is wasteful, so
the golden cases store none: every tensor of the reference network's state dict is filled from
its own *name*, and anyone who knows the names and shapes can rebuild the same checkpoint.

    state = fill_state({"backbone.stem.conv.weight": (32, 12, 3, 3), ...})

The names are those of the reference implementation; a project that names its layers
differently converts the filled checkpoint exactly as it would convert a downloaded one.
"""

import zlib

import numpy as np


def fill_tensor(name, shape, dtype="float32"):
    """The reference value of one tensor, decided by its name, shape and dtype alone."""
    shape = tuple(int(s) for s in shape)
    if not str(dtype).startswith("float"):
        return np.zeros(shape, dtype=dtype)  # counters such as num_batches_tracked
    rng = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        value = rng.uniform(0.5, 1.5, shape)
    elif leaf == "running_mean":
        value = 0.1 * rng.standard_normal(shape)
    elif len(shape) >= 2:
        fan_in = max(1, int(np.prod(shape[1:])))
        value = rng.standard_normal(shape) * np.sqrt(2.0 / fan_in)
    elif leaf == "weight":
        value = rng.uniform(0.5, 1.5, shape)
    else:
        value = 0.1 * rng.standard_normal(shape)
    return np.asarray(value, dtype=dtype)


def fill_state(shapes):
    """{name: shape} or {name: [shape, dtype]} -> {name: array}."""
    state = {}
    for name, spec in shapes.items():
        if len(spec) == 2 and isinstance(spec[1], str):
            state[name] = fill_tensor(name, spec[0], spec[1])
        else:
            state[name] = fill_tensor(name, spec)
    return state


def input_array(shape, seed=0):
    """The reference input: uniform in [0, 1)."""
    return np.random.RandomState(seed).random_sample(shape).astype("float32")
