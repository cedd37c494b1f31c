"""One thread: the same sums on every machine, and the other core stays free."""

import os

import torch
from home import forget_includes, quick_home, tiny_home, traps, warm_cache  # noqa: F401
from tiny import words  # noqa: F401

torch.set_num_threads(1)
if not torch.cuda.is_available():
    # kernels run in triton's interpreter; it must be told before anything imports triton
    os.environ["TRITON_INTERPRET"] = "1"
