"""Random numbers: of one's own, which leave everybody else's as they are, and the state of all of them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch

_NumPyState = tuple[str, np.ndarray, int, int, float]


@contextmanager
def seeded(seed: int, devices: Iterable[torch.device]) -> Iterator[None]:
    """Within it the generators of the CPU and of these devices begin from `seed`; then they go on as before."""
    gpus = [*{device for device in devices if device.type == "cuda"}]
    with torch.random.fork_rng(devices=gpus):
        for generator in (torch.default_generator, *(torch.cuda.default_generators[gpu.index] for gpu in gpus)):
            generator.manual_seed(seed)  # torch.manual_seed would seed every GPU
        yield


@contextmanager
def undisturbed(loader: object = None) -> Iterator[None]:
    """Behind it all generators stand where they stood: torch's, NumPy's, Python's, and those that `loader` holds."""
    state = random_state(loader)
    try:
        yield
    finally:
        restore_random_state(state, loader)


def random_state(loader: object = None) -> dict[str, Any]:
    """The state of torch's, NumPy's and Python's generators, and of those that `loader` holds.

    Returns:
        Tensors and plain values only, as `torch.load(weights_only=True)` accepts them.
    """
    _, keys, position, has_gauss, gauss = cast(_NumPyState, np.random.get_state(legacy=True))
    version, internal, next_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": [version, torch.tensor(internal), next_gauss],
        "loader": [generator.get_state() for generator in _generators(loader)],
    }


def restore_random_state(state: Mapping[str, Any], loader: object = None) -> None:
    """Puts back what `random_state` took."""
    torch.set_rng_state(state["torch"].cpu())
    if len(state["cuda"]) == torch.cuda.device_count():  # on another machine's GPUs there are no bits to keep
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.cpu().numpy().astype(np.uint32), *rest))
    version, internal, next_gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), next_gauss))
    for generator, saved in zip(_generators(loader), state["loader"], strict=True):
        generator.set_state(saved.cpu())


def _generators(loader: object) -> list[torch.Generator]:
    """A DataLoader's own generator and its samplers', each once."""
    found: dict[int, torch.Generator] = {}
    holders, seen = [loader], set()
    while holders:
        holder = holders.pop()
        if holder is None or id(holder) in seen:
            continue
        seen.add(id(holder))
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            found.setdefault(id(generator), generator)
        holders += [getattr(holder, name, None) for name in ("sampler", "batch_sampler")]
    return list(found.values())
