"""One thread: the same sums on every machine, and the other core stays free."""

import torch
from home import forget_includes, quick_home, tiny_home, warm_cache  # noqa: F401

torch.set_num_threads(1)
