"""One thread: the same sums on every machine, and the other core stays free."""

import torch

torch.set_num_threads(1)
