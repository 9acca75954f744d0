"""Types of arrays that scoring takes and returns; their shapes are in the docstrings."""

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
Float32Array = NDArray[np.float32]  # embeddings and scores, in the precision of the networks
Float64Array = NDArray[np.float64]  # error rates and costs
FloatArray = NDArray[np.floating]  # scores in either precision
IndexArray = NDArray[np.int64]
