"""What all tests share: one torch thread, as everything is tiny."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
