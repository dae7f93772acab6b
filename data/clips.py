"""Which frames make a sample: keys are tuples of image indices, one for each frame."""

import numpy as np


def stills(records):
    """One key (i,) for each image."""
    return [(index,) for index in range(len(records))]


def windows(records, length, interval=1):
    """Clips of `length` frames, `interval` frames apart, starting at every frame of every video.

    A clip lies inside one video; where a video ends too early for it no clip starts.
    """
    keys, span = [], (length - 1) * interval
    for video in range(len(records.videos)):
        members = np.flatnonzero(records.video == video)
        members = members[np.argsort(records.frame[members], kind="stable")].tolist()
        for start in range(len(members) - span):
            keys.append(tuple(members[start : start + span + 1 : interval]))
    return keys
