"""Getting a sparse vector into a quantum state, and out of it again."""

from torch_qsgd.readout.postselection import PostSelection, block_norms, post_selection
from torch_qsgd.readout.sparse_vectors import nonzero_entries
from torch_qsgd.readout.state_preparation import (
    PreparationCost,
    counted_cost,
    preparation_cost,
    sparse_state_preparation,
)
from torch_qsgd.readout.tomography import (
    Reading,
    Tomography,
    expected_copies,
    guaranteed_copies,
)

__all__ = [
    "PostSelection",
    "PreparationCost",
    "Reading",
    "Tomography",
    "block_norms",
    "counted_cost",
    "expected_copies",
    "guaranteed_copies",
    "nonzero_entries",
    "post_selection",
    "preparation_cost",
    "sparse_state_preparation",
]
