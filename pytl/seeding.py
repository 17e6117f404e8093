"""Random numbers of one's own, which leave everybody else's as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, devices: Iterable[torch.device]) -> Iterator[None]:
    """Within it the generators of the CPU and of these devices begin from `seed`; then they go on as before."""
    gpus = [*{device for device in devices if device.type == "cuda"}]
    with torch.random.fork_rng(devices=gpus):
        for generator in (torch.default_generator, *(torch.cuda.default_generators[gpu.index] for gpu in gpus)):
            generator.manual_seed(seed)  # torch.manual_seed would seed every GPU
        yield
