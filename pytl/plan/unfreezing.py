"""Gradual unfreezing: blocks that begin to be trained at a step of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from pytl.architecture import unwrapped
from pytl.depth import placed
from pytl.plan.block_plan import FOR_GOOD


class Unfreezing:
    """Freezes what a plan's groups freeze, and trains it from its step on. The groups stay as they are.

    A frozen parameter has no gradient and no optimizer state. Modules that hold nothing else are in evaluation mode, so
    that their statistics stay.

    ::

        opt = pytl.AdamW(plan.apply(model), lr=1e-4)
        unfreezing = pytl.Unfreezing(opt, model)
        for x, y in loader:
            ...
            opt.step()
            unfreezing.step()

    Args:
        optimizer: its groups are of ``TransferPlan.apply``: "frozen_until" is a step, 0, or "end".
        model: the network. Call `hold` whenever ``model.train()`` has woken it up.

    Attributes:
        steps: how many were taken.

    Raises:
        ValueError: the model is in DDP, and will not average gradients that come later: it was wrapped without
            ``find_unused_parameters``, or when they were frozen already.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module) -> None:
        self.optimizer, self.model, self.steps = optimizer, model, 0
        self._asleep: list[nn.Module] = []
        later = [p for p, step in self._until().items() if step and step != FOR_GOOD]
        if later and isinstance(model, DistributedDataParallel):
            if not model.find_unused_parameters:
                raise ValueError("model must be in DDP with find_unused_parameters=True where a plan unfreezes later")
            if not all(p.requires_grad for p in later):
                raise ValueError("model must be wrapped in DDP before anything that is trained later is frozen")
        self.hold()

    def _until(self) -> dict[Tensor, int | str]:
        return {p: group.get("frozen_until", 0) for group in self.optimizer.param_groups for p in group["params"]}

    def hold(self) -> None:
        """Freezes and thaws what the number of steps says."""
        known = self._until()
        frozen = {p for p, until in known.items() if until == FOR_GOOD or self.steps < int(until)}
        for p, until in known.items():
            if p in frozen:
                p.grad = None
            if until != 0:
                p.requires_grad_(p not in frozen)
        for module in self._asleep:
            module.train(self.model.training)
        self._asleep = [*self._wholly_frozen(frozen, {*known})]
        for module in self._asleep:
            module.eval()

    def _wholly_frozen(self, frozen: set[Tensor], known: set[Tensor]) -> Iterator[nn.Module]:
        """Modules that hold frozen parameters and none that is trained; of those without any, all in frozen blocks."""
        network, heads = unwrapped(self.model), self._heads()
        named, place = dict(network.named_parameters()), placed(network)

        def counts(p: Tensor) -> bool:
            return p in known or p.requires_grad  # else it was frozen by somebody else

        trained = {place[name] for name, p in named.items() if counts(p) and p not in frozen | heads}
        blocks = {place[name] for name, p in named.items() if p in frozen} - trained
        for name, module in network.named_modules():
            own = [p for p in module.parameters() if counts(p)]
            tensors = [] if own else [f"{name}.{inner}" for inner in module.state_dict()]
            if name and (all(p in frozen for p in own) if own else any(place.get(t) in blocks for t in tensors)):
                yield module

    def _heads(self) -> set[Tensor]:
        return {p for group in self.optimizer.param_groups if group.get("role") == "new" for p in group["params"]}

    def step(self) -> None:
        """Once after each optimizer step."""
        self.steps += 1
        if self.steps in self._until().values():
            self.hold()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` returned."""
        self.steps = int(state["steps"])
        self.hold()
