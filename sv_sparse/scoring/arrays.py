"""Types of arrays that scoring takes and returns; their shapes are in the docstrings."""

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
# Embeddings and scores, in the precision of the networks.
Float32Array = NDArray[np.float32]
# Error rates and costs.
Float64Array = NDArray[np.float64]
# Scores in either precision.
FloatArray = NDArray[np.floating]
IndexArray = NDArray[np.int64]
