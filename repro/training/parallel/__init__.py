"""One net trained by several processes: the two columns of 2012, data parallelism, and the trick that joins them."""

from repro.training.parallel.columns import Columns
from repro.training.parallel.data import DataParallel
from repro.training.parallel.engine import FullySharded, TensorParallel
from repro.training.parallel.group import Group, ParallelError, joined
from repro.training.parallel.hybrid import Hybrid
from repro.training.parallel.one import OneProcess

_KINDS = OneProcess, Columns, DataParallel, Hybrid, FullySharded, TensorParallel
MODES: dict[str, type[OneProcess]] = {kind.mode: kind for kind in _KINDS}

__all__ = ["MODES", "Columns", "DataParallel", "Group", "Hybrid", "OneProcess", "ParallelError", "joined"]
