from __future__ import annotations

import torch

# Networks here are small: a second thread only waits, and on a busy machine waits for long.
torch.set_num_threads(1)
