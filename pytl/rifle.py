"""RIFLE: the head is re-initialised now and then, so that gradients reach deep layers again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Initialiser = str | Callable[[nn.Module], None]


class RIFLE:
    """Re-initialises the head at the end of each period but the last (Li et al. 2020, arXiv:2007.03349).

    ``total_steps`` are cut into ``periods`` of equal length. Within each the head's learning rate may fall from its
    full value to 0 along a cosine; that is our reading of the paper, and off in its released code, which re-initialises
    once, at half time, and keeps the head's momentum. After the last period the head is left alone: a new one would
    answer at random.

    ::

        rifle = pytl.RIFLE(model.fc, opt, total_steps=epochs * len(loader))
        for x, y in loader:
            ...
            opt.step()
            scheduler.step()
            rifle.step()  # after the scheduler: it has the last word on the head's rate

    Args:
        head: the module to re-initialise, or several.
        optimizer: steps the head's parameters, in groups of their own if ``cyclic_lr``.
        total_steps: of the whole run.
        periods: how many; 1 changes nothing.
        cyclic_lr: the head's rate is ``lr * (1 + cos(pi t / T)) / 2`` at step t of a period of T steps; lr is its
            group's ``initial_lr``, or its rate of now.
        reset_state: forget the optimizer's state of the head as well.
        init: "reset_parameters", the modules' own; "normal" (standard deviation 0.01, biases 0); "kaiming"; or a
            function of the head.
        seed: of the new weights, the same on every rank; other random numbers are left as they are.

    Raises:
        ValueError: periods out of range, an unknown init, a head without parameters or not in the optimizer, or one
            that shares a group with other parameters while its rate is cyclic.
    """

    def __init__(
        self,
        head: nn.Module | Sequence[nn.Module],
        optimizer: Optimizer,
        total_steps: int,
        periods: int = 3,
        *,
        cyclic_lr: bool = True,
        reset_state: bool = False,
        init: Initialiser = "reset_parameters",
        seed: int = 0,
    ) -> None:
        if not 1 <= periods <= total_steps:
            raise ValueError(f"periods must be in [1, total_steps = {total_steps}]; got {periods}")
        if isinstance(init, str) and init not in _INITIALISERS:
            raise ValueError(f"init must be one of {', '.join(_INITIALISERS)} or a function; got {init!r}")
        self.head = [head] if isinstance(head, nn.Module) else [*head]
        self.optimizer, self.cyclic_lr = optimizer, cyclic_lr and periods > 1
        self.reset_state, self.seed = reset_state, seed
        self._initialise = _INITIALISERS[init] if isinstance(init, str) else init
        self.boundaries = [round(period * total_steps / periods) for period in range(periods + 1)]
        self.steps = 0
        self._check()
        self._rates = [float(group.get("initial_lr", group["lr"])) for group in self._groups()]
        self._set_rates()

    def step(self) -> bool:
        """Once after each optimizer step, and after a scheduler's; True where the head was re-initialised."""
        self.steps += 1
        ends = self.steps in self.boundaries[1:-1]
        if ends:
            self._reinitialise(self.boundaries.index(self.steps))
        self._set_rates()
        return ends

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "rates": list(self._rates)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self._rates = int(state["steps"]), list(state["rates"])
        self._set_rates()

    def _own(self) -> set[Tensor]:
        return {p for module in self.head for p in module.parameters()}

    def _groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups of the head; ``load_state_dict`` makes new ones."""
        return [group for group in self.optimizer.param_groups if self._own() & set(group["params"])]

    def _check(self) -> None:
        own, groups = self._own(), self._groups()
        if not own or not own <= {p for group in groups for p in group["params"]}:
            raise ValueError("head must have parameters, all of them in the optimizer; it has others, or none")
        if self.cyclic_lr and not all(own >= set(group["params"]) for group in groups):
            raise ValueError("head must have parameter groups of its own for cyclic_lr; it shares one with others")

    def _set_rates(self) -> None:
        if not self.cyclic_lr:
            return
        begins = max(b for b in self.boundaries[:-1] if b <= self.steps)
        ends = self.boundaries[self.boundaries.index(begins) + 1]
        factor = (1 + math.cos(math.pi * min(1.0, (self.steps - begins) / (ends - begins)))) / 2
        for group, rate in zip(self._groups(), self._rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor

    @torch.no_grad()
    def _reinitialise(self, period: int) -> None:
        devices = {p.device for p in self._own() if p.is_cuda}
        with torch.random.fork_rng(devices=[*devices]):
            torch.manual_seed(self.seed + period)
            for module in self.head:
                self._initialise(module)
        if self.reset_state:
            for p in self._own():
                self.optimizer.state.pop(p, None)


def _reset_parameters(head: nn.Module) -> None:
    for module in head.modules():
        own = getattr(module, "reset_parameters", None)
        if callable(own):
            own()
        elif any(True for _ in module.parameters(recurse=False)):
            raise ValueError(f"head must know reset_parameters, or init be another; {type(module).__name__} does not")


def _drawn(draw: Callable[[Tensor], Any]) -> Callable[[nn.Module], None]:
    def initialise(head: nn.Module) -> None:
        for p in head.parameters():
            if p.dim() > 1:
                draw(p)
            else:
                p.zero_()

    return initialise


_INITIALISERS: dict[str, Callable[[nn.Module], None]] = {
    "reset_parameters": _reset_parameters,
    "normal": _drawn(lambda p: nn.init.normal_(p, std=0.01)),
    "kaiming": _drawn(nn.init.kaiming_normal_),
}
