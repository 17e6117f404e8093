"""RIFLE: the head is re-initialised now and then, so that gradients reach deep layers again."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pytl.architecture import Head, head_modules
from pytl.initialisers import Initialiser, initialiser
from pytl.periods import Periods
from pytl.seeding import seeded

_log = logging.getLogger(__name__)


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
        head: the module to re-initialise, or several; with ``model``, also names, or None: found.
        optimizer: steps the head's parameters, in groups of their own if ``cyclic_lr``.
        total_steps: of the whole run; or its epochs, where `step` is called once an epoch.
        periods: how many; 1 changes nothing.
        steps_per_epoch: periods end with an epoch; None: wherever they end.
        lr: the head's full rate; None: its groups' ``initial_lr``, or their rate of now.
        cyclic_lr: the head's rate is ``lr * (1 + cos(pi t / T)) / 2`` at step t of a period of T steps.
        reset_state: forget the optimizer's state of the head as well.
        init: "reset_parameters", the modules' own; "normal" (standard deviation 0.01, biases 0); "kaiming"; or a
            function of the head.
        model: the whole network, so that a head which is tied to the rest is refused.
        seed: of the new weights, the same on every rank; other random numbers are left as they are.

    Attributes:
        periods: their boundaries.
        steps: how many were taken.

    Raises:
        ValueError: periods or a rate out of range; an unknown init, or a head that has no ``reset_parameters``; a head
            without parameters, or whose parameters are not the optimizer's, are tied to others, are pulled to their
            starting point, or share a group with others while the rate is cyclic. Nothing is changed then.
    """

    def __init__(
        self,
        head: Head | None,
        optimizer: Optimizer,
        total_steps: int,
        periods: int = 3,
        *,
        steps_per_epoch: int | None = None,
        lr: float | None = None,
        cyclic_lr: bool = True,
        reset_state: bool = False,
        init: Initialiser = "reset_parameters",
        model: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        self.periods = Periods(total_steps, periods, steps_per_epoch)
        if lr is not None and not lr >= 0:
            raise ValueError(f"lr must be >= 0; got {lr}")
        self.head = _given(head) if model is None else head_modules(model, head)
        self.optimizer, self.cyclic_lr = optimizer, cyclic_lr and periods > 1
        self.reset_state, self.seed = reset_state, seed
        self.steps = 0
        self._initialise = initialiser(init, self.head)
        self._refuse_foreign()
        self._refuse_tied(model)
        self._refuse_bad_groups()
        self._rates = [float(group.get("initial_lr", group["lr"]) if lr is None else lr) for group in self._groups()]
        self.set_rates()

    @property
    def due(self) -> bool:
        """Whether the next `step` re-initialises the head."""
        return self.steps + 1 in self.periods.resets

    def step(self) -> bool:
        """Once after each optimizer step, and after a scheduler's; True where the head was re-initialised."""
        due = self.due
        self.steps += 1
        if due:
            self._reinitialise()
        self.set_rates()
        return due

    def set_rates(self) -> None:
        """Gives the head its cyclic rate, which `step` does by itself; for schedulers that step after it."""
        if not self.cyclic_lr:
            return
        factor, groups = self.periods.cosine(self.steps), self._groups()
        for group, rate in zip(groups, self._rates, strict=True):
            if not isinstance(group["lr"], Tensor):
                group["lr"] = rate * factor
                continue
            if sum(other["lr"] is group["lr"] for other in self.optimizer.param_groups) > 1:
                group["lr"] = group["lr"].clone()  # torch gives one tensor to all groups
            group["lr"].fill_(rate * factor)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "rates": list(self._rates), "boundaries": self.periods.boundaries}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` returned.

        Raises:
            ValueError: it is of a run that was cut otherwise, or of other groups; nothing was changed.
        """
        if state["boundaries"] != self.periods.boundaries:
            raise ValueError(f"state must have boundaries {self.periods.boundaries}; got {state['boundaries']}")
        if len(state["rates"]) != len(self._rates):
            raise ValueError(f"state must have rates of {len(self._rates)} groups; got {len(state['rates'])}")
        self.steps, self._rates = int(state["steps"]), list(state["rates"])
        self.set_rates()

    def _own(self) -> set[Tensor]:
        return {p for module in self.head for p in module.parameters()}

    def _groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups of the head; ``load_state_dict`` makes new ones."""
        own = self._own()
        return [group for group in self.optimizer.param_groups if own & set(group["params"])]

    @torch.no_grad()
    def _reinitialise(self) -> None:
        period = self.periods.boundaries.index(self.steps)
        with seeded(self.seed + period, (p.device for p in self._own())):
            for module in self.head:
                self._initialise(module)
        for p in self._own():
            state = self.optimizer.state.get(p, {})
            if self.reset_state:
                self.optimizer.state.pop(p, None)
            elif state.get("compensation") is not None:  # of what the old weights had lost by rounding
                state["compensation"].zero_()
        total, count = self.periods.total_steps, self.periods.count
        _log.info("head re-initialised after step %d of %d, period %d of %d", self.steps, total, period, count)

    def _refuse_foreign(self) -> None:
        """A head without parameters, or whose parameters the optimizer lacks."""
        stepped = {p for group in self.optimizer.param_groups for p in group["params"]}
        own = {name: p for module in self.head for name, p in module.named_parameters()}
        if not own:
            kinds = ", ".join(type(module).__name__ for module in self.head) or "no module"
            raise ValueError(f"head must have parameters; got {kinds} without any")
        if missing := [name for name, p in own.items() if p not in stepped]:
            raise ValueError(f"head's parameters must be among the optimizer's; {', '.join(missing)} are not")

    def _refuse_tied(self, model: nn.Module | None) -> None:
        inside = [id(module) for head in self.head for module in head.modules()]
        owners: dict[Tensor, int] = {}
        parts = [*self.head] if model is None else [model]
        for module in (one for part in parts for one in part.modules()):
            for name, p in module.named_parameters(recurse=False):
                if p in self._own() and owners.setdefault(p, id(module)) != id(module):
                    where = "" if {owners[p], id(module)} <= {*inside} else " with the rest of the model"
                    raise ValueError(
                        f"head must not share parameters{where}: its {name} is tied to another layer's, which would be "
                        "re-initialised with it"
                    )

    def _refuse_bad_groups(self) -> None:
        own = self._own()
        for group in self._groups():
            if group.get("sp_decay"):
                raise ValueError(
                    f"head must not be pulled to a starting point that it leaves; got sp_decay={group['sp_decay']} in "
                    "its group: pytl.param_groups leaves the head out"
                )
            if self.cyclic_lr and not own >= set(group["params"]):
                raise ValueError(
                    "head must have parameter groups of its own for cyclic_lr, as pytl.param_groups makes them; it "
                    "shares one with others"
                )


def _given(head: Head | None) -> list[nn.Module]:
    parts = [head] if isinstance(head, str | nn.Module) else [*(head or [])]
    modules = [part for part in parts if isinstance(part, nn.Module)]
    if head is None or len(modules) < len(parts):
        raise ValueError(f"head must be a module, or several, where model is not given; got {head!r}")
    return modules
