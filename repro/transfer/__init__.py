"""Are features generic? A net trained on one set, cut off, and a linear classifier for another from few pictures.

Zeiler & Fergus (2014), section 5.2, ask it of ImageNet and Caltech-256; chapter 20 asks it at the book's scale.
"""

from repro.transfer.classify import classify, draw_pictures
from repro.transfer.features import features, pixels, pooled, random_like, stages
from repro.transfer.study import PIXELS, RANDOM, TRAINED, Study, load, study

__all__ = [
    "PIXELS",
    "RANDOM",
    "TRAINED",
    "Study",
    "classify",
    "draw_pictures",
    "features",
    "load",
    "pixels",
    "pooled",
    "random_like",
    "stages",
    "study",
]
