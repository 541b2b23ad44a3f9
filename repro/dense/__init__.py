"""A net trained on crops, run over whole pictures: fully connected layers as convolutions. Chapter 15 teaches it.

Sermanet et al., "OverFeat" (2013), section 3.3; Simonyan & Zisserman (2015), section 3.2. `convolutionize` makes the
net, its `grid` says which crop each output stands for, `overfeat` makes the outputs lie closer, and the functions of
`repro.dense.scores` turn score maps into answers.
"""

from repro.dense.convert import DenseError, FullyConvolutional, LinearAsConv2d, convolutionize
from repro.dense.grid import DenseGrid
from repro.dense.overfeat import interleaved, overfeat
from repro.dense.scores import HeatMap, crop_probabilities, dense_probabilities, heat_map, over_scales, resize

__all__ = [
    "DenseError",
    "DenseGrid",
    "FullyConvolutional",
    "HeatMap",
    "LinearAsConv2d",
    "convolutionize",
    "crop_probabilities",
    "dense_probabilities",
    "heat_map",
    "interleaved",
    "over_scales",
    "overfeat",
    "resize",
]
