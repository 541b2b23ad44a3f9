"""Pictures with labels, by name: `load("mnist", "train")`. Chapter 1 uses it first, chapter 7 looks inside."""

from repro.data.images import ImageSet
from repro.data.shards import ShardSet, open_set
from repro.data.sources import list_sets, load, prepare

__all__ = ["ImageSet", "ShardSet", "list_sets", "load", "open_set", "prepare"]
