"""What pytl.SGD and pytl.AdamW share: groups, state, starting point, penalties, and one step over all of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from pytl.directions import find
from pytl.ops.operands import GroupOptions, Operands, check, check_gradient, check_memory, check_weight
from pytl.ops.plan import Scaling, is_capturing
from pytl.ops.step import Run, look_and_step, penalty_gram, pull_gram
from pytl.optim.engines import Given, check_engine, given
from pytl.optim.loading import check_loadable, lighten, restore, same_direction
from pytl.optim.members import Member, members
from pytl.optim.options import (
    check_max_grad_norm,
    check_options,
    is_anchored,
    is_tensor_or_not_0,
    number_or_tensor,
    wants_core,
)
from pytl.optim.penalties import PenaltyGradients
from pytl.optim.plan import Plan, Signature, split
from pytl.optim.prefetch import Prefetch
from pytl.optim.ranks import Ranks
from pytl.optim.report import Report, make_report
from pytl.optim.sharding import check_placements, here, part
from pytl.optim.start import StartingPoint
from pytl.optim.state import StateMaker, check_overlap


class Optimizer(torch.optim.Optimizer):
    """The common face. A subclass says which options and states it has, and which of ``pytl.ops`` takes the step."""

    _step_supports_amp_scaling = True
    _run: Run

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        start: StartingPoint,
        compensated: bool | None,
        max_grad_norm: float | None,
    ) -> None:
        check_max_grad_norm(max_grad_norm)
        self.max_grad_norm = max_grad_norm
        self._start = start
        self._maker = StateMaker(start, compensated)
        self._penalties = PenaltyGradients()
        self._plan: Plan | None = None
        self._captured: list[Plan] = []
        self._given: list[Given] = []
        super().__init__(params, defaults)
        self._check_start()

    # What a subclass says:

    def _options(self, group: dict[str, Any], gradient_factor: float) -> GroupOptions:
        raise TypeError(f"{type(self).__name__} must define _options(group, gradient_factor)")

    def _common_options(self, group: dict[str, Any], gradient_factor: float) -> dict[str, Any]:
        return {
            "lr": number_or_tensor(group["lr"]),
            "sp_decay": number_or_tensor(group["sp_decay"]),
            "weight_decay": number_or_tensor(group["weight_decay"]),
            "decoupled": group["decoupled"],
            "direction": find(group["direction"]),
            "granularity": group["granularity"],
            "gradient_factor": gradient_factor,
        }

    def _states(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The names of the moments that a group's options ask for, in the formula's order."""
        raise TypeError(f"{type(self).__name__} must define _states(group)")

    # Groups:

    @torch._disable_dynamo
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, in the middle of training as well. Raises before anything is changed."""
        if isinstance(param_group, dict):
            check_options(self.defaults | param_group)
        super().add_param_group(param_group)
        try:
            for _, name, p in members(self.param_groups):
                check_weight(p, name)
                check_placements(p, name)
            check_overlap([here(p) for p in self._params()])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        self._given.append(given(self.param_groups[-1]["params"]))
        self._plan = None

    def _params(self) -> list[Tensor]:
        return list(dict.fromkeys(chain.from_iterable(group["params"] for group in self.param_groups)))

    def _check_start(self) -> None:
        if self._start.source is None:
            return
        if "param_names" not in self.param_groups[0]:
            raise ValueError(
                "start needs the parameters' names: pass model.named_parameters() or pytl.param_groups(model)"
            )
        known = members(self.param_groups)
        anchored = {name: p for k, name, p in known if is_anchored(self.param_groups[k])}
        self._start.check(anchored, [name for _, name, _ in known if name not in anchored])

    # The step:

    @torch._disable_dynamo
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step; with a closure, calls it first, with gradients enabled, and returns its value.

        Under a ``GradScaler`` gradients are unscaled on the way, and an overflow leaves everything as it is. On CUDA
        devices nothing waits and nothing is read back; a step may be captured in a CUDA graph once another was taken.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            self._step()
        return loss

    def _step(self) -> None:
        self._refuse_global_in_backward()
        found_inf = self._penalties.found_inf(getattr(self, "found_inf", None))
        scaling = Scaling(getattr(self, "grad_scale", None), found_inf)
        if self._penalties.of:
            self._penalties.average(self._params())
        plan = self._take_step_of(scaling)
        if plan is not None and plan.lists:
            options = self._all_options()
            look_and_step(plan.lists, options, type(self)._run, self.max_grad_norm, scaling, plan.total, plan.each)
            plan.publish()
            torch.autograd.graph.increment_version(plan.on_core)
        self._penalties.clear()

    def _all_options(self) -> list[GroupOptions]:
        return [self._options(group, -1.0 if group["maximize"] else 1.0) for group in self.param_groups]

    def write_options(self) -> None:
        """Brings the groups' options of now to the devices, for steps that were captured in a CUDA graph.

        A replayed step reads its options there. Those that are tensors on the device (``lr``, ``sp_decay``,
        ``weight_decay``, ``betas``) it follows by itself; after a change of numbers, call this before the replay. One
        launch, no waiting.
        """
        for plan in [*self._captured, *([self._plan] if self._plan else [])]:
            for on_device in plan.cuda:
                on_device.write_options(self._all_options())

    def _refuse_global_in_backward(self) -> None:
        together = (
            any(group["granularity"] == "global" for group in self.param_groups) or self.max_grad_norm is not None
        )
        if together and torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                'a step inside backward needs granularity="tensor" and max_grad_norm=None: '
                "the other gradients are not there yet"
            )

    def _take_step_of(self, scaling: Scaling) -> Plan | None:
        """The plan with this step's gradients; None where an overflow is known on the host."""
        params = [p for group in self.param_groups for p in group["params"]]
        grads = [p.grad for p in params]
        signature = [self._signature(group) for group in self.param_groups]
        plan = self._plan
        holds = plan is not None and plan.holds(params, grads, signature, self.state)
        if not (plan and holds and plan.is_on_device) and scaling.found_inf is not None and scaling.on_host()[1]:
            if plan is not None:
                plan.gram.fill_(float("nan"))  # of a step that was not looked at
            return None
        if not (plan and holds and plan.take(grads, self._penalties.of)):
            plan = self._plan = self._new_plan(params, grads, signature)
        return plan

    def _signature(self, group: dict[str, Any]) -> tuple[Any, ...]:
        decisive = group["fused"], group["foreach"], group["moments"], is_tensor_or_not_0(group["lr"])
        return len(group["params"]), is_anchored(group), *decisive, self._states(group)

    def _leave_captured_plan(self, params: list[Tensor]) -> None:
        """A plan must live as long as the graphs that have captured its steps."""
        if any(p.is_cuda for p in params) and is_capturing():
            raise RuntimeError(
                "a step can be captured once another was taken with the same parameters and groups: take one before "
                "the capture"
            )
        if self._plan is not None and any(on_device.captured for on_device in self._plan.cuda):
            self._captured.append(self._plan)

    def _stepped(
        self, params: list[Tensor], grads: list[Tensor | None], known: list[Member]
    ) -> list[tuple[int, Tensor]]:
        """Places and gradients of the parameters that take part, each once; all of them can be stepped on."""
        first = {p: i for i, p in reversed([*enumerate(params)])}
        stepped = [(i, part(g, params[i])) for i, g in enumerate(grads) if g is not None and first[params[i]] == i]
        for i, grad in stepped:
            check_gradient(grad, known[i][1])
            check_memory(here(params[i]), known[i][1])
            check_memory(grad, f"the gradient of {known[i][1]}")
        check_overlap([here(p) for p in first])
        return stepped

    def _new_plan(self, params: list[Tensor], grads: list[Tensor | None], signature: Signature) -> Plan:
        self._leave_captured_plan(params)
        check_engine(self.param_groups, self._given, self.max_grad_norm)
        known = members(self.param_groups)
        stepped = self._stepped(params, grads, known)
        self._check_start()
        states = {i: self._made_state(*known[i]) for i, _ in stepped}
        self._maker.compare_norms()
        operands = [self._operands(*known[i], grad, states[i]) for i, grad in stepped]
        starts = {i: o.start for (i, _), o in zip(stepped, operands, strict=True) if o.start is not None}
        prefetch = Prefetch(operands)
        for one, (i, _) in zip(operands, stepped, strict=True):
            check(one, known[i][1])
        wanted = [wants_core(self.param_groups[o.group]) for o in operands]
        lists, indices, windows = split(operands, wanted, prefetch.window_of)
        for i, state in states.items():
            self._maker.keep(params[i], state, self.state[params[i]])
        return Plan(
            params=params,
            absent=[i for i, grad in enumerate(grads) if grad is None],
            signature=signature,
            lists=lists,
            indices=[[stepped[k][0] for k in index] for index in indices],
            windows=windows,
            prefetch=prefetch,
            starts=starts,
            state=self.state,
        )

    # State:

    def _made_state(self, k: int, name: str, p: Tensor) -> dict[str, Tensor]:
        group = self.param_groups[k]
        return self._maker.made(name, p, self.state.get(p, {}), group, self._states(group))

    def _names_of_moments(self) -> set[str]:
        return {moment for group in self.param_groups for moment in self._states(group)}

    def _operands(self, k: int, name: str, p: Tensor, grad: Tensor, state: dict[str, Tensor]) -> Operands:
        moments = self._states(self.param_groups[k])
        start, compensation = state.get("start"), state.get("compensation")
        return Operands(
            weight=here(p),
            gradient=grad,
            start=None if start is None else part(start, p),
            penalty=self._penalties.of.get(p),
            compensation=None if compensation is None else here(compensation),
            states=tuple(here(state[moment]) for moment in moments),
            scales=tuple(state[f"{moment}_scales"] for moment in moments if f"{moment}_scales" in state),
            step=state["step"],
            group=k,
            fresh=any(self.state.get(p, {}).get(moment) is None for moment in moments),
        )

    def take_penalty(self, value: Tensor, scaler: torch.amp.GradScaler | None = None, *, average: Ranks = True) -> None:
        """Keeps the gradient of a feature penalty apart from the task's, for the direction to join.

        Once a micro-batch, before ``loss.backward()``: the graph that both share is kept, and walked once more.
        Gradients accumulate until the step, as those of the task do. Where FSDP shards the parameters, every
        micro-batch must synchronise its gradients (``set_requires_gradient_sync(True)``, the default), and the
        penalty's gradient is left in the ``grad`` of parameters that this optimizer does not have.

        Args:
            value: the penalty, one number, as it would be added to the loss (divided by the number of micro-batches).
            scaler: that of the task's loss, for gradients in float16. An overflow of the penalty's gradient makes the
                scaler skip the step and shrink its scale, as one of the task's does; ranks agree on it here.
            average: over whose ranks the gradient is averaged at the step, as DDP averages the task's: True: those of
                the default process group, where there is one; a process group; False: not at all.

        Raises:
            ValueError: ``value`` is no scalar, or depends on no parameter.
        """
        self._penalties.take(value, [p for p in self._params() if p.requires_grad], scaler, average)

    @property
    def directs(self) -> bool:
        """Whether a direction joins a regulariser's gradient with the task's, or their sum will do."""
        return any(find(group["direction"]).rule != "sum" for group in self.param_groups)

    @property
    def knows_start(self) -> bool:
        """Whether the starting point of all that is pulled is in the state, or can be read from ``start``: else the
        weights of the next step would be it."""
        pulled = [p for k, _, p in members(self.param_groups) if is_anchored(self.param_groups[k])]
        return self._start.source is not None or all("start" in self.state.get(p, {}) for p in pulled)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients, those of the penalties as well."""
        super().zero_grad(set_to_none)
        self._penalties.clear()

    # What the last step saw:

    @property
    def gram(self) -> Tensor:
        """<g,g>, <g,r>, <r,r> of each parameter in the last step: float64 ``[n, 3]``; rows without a gradient are 0."""
        return pull_gram(self._seen().gram)

    @property
    def penalty_gram(self) -> Tensor:
        """<g,g>, <g,h>, <h,h> with the penalty's gradient h, where decoupled; float64 ``[n, 3]``."""
        return penalty_gram(self._seen().gram)

    def report(self) -> Report:
        """The last step in numbers, by tensor and in all. Reads the weights once; of sharded ones all ranks ask."""
        return make_report(self._seen(), members(self.param_groups), self.param_groups)

    def _seen(self) -> Plan:
        if self._plan is None:
            raise RuntimeError("there are no Gram numbers before the first step")
        return self._plan

    # Saving and loading:

    def state_dict(self) -> dict[str, Any]:
        """As in torch; directions are saved by name, starting points where they are to be."""
        saved = super().state_dict()
        if not self._start.saved:
            saved["state"] = {k: {n: v for n, v in s.items() if n != "start"} for k, s in saved["state"].items()}
        for group in saved["param_groups"]:
            group["direction"] = find(group["direction"]).name
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but every tensor keeps its dtype. A state dict of torch's optimizers loads as well.

        Raises:
            ValueError: before anything is changed: shapes of other parameters; steps were taken towards a starting
                point that is neither in the state nor in ``start``.
        """
        loaded: dict[str, Any] = {}

        def take(_: Any, final: dict[str, Any]) -> dict[str, Any]:
            check_loadable(self, final, self._names_of_moments(), self._start.source is not None)
            loaded.update(final)
            return lighten(final)

        before = self.register_load_state_dict_pre_hook(take)
        after = self.register_load_state_dict_post_hook(
            lambda _: restore(self, loaded, self._start.device), prepend=True
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def __getstate__(self) -> dict[str, Any]:
        own = ("max_grad_norm", "_start", "_maker")
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        current = getattr(self, "param_groups", None) or [{} for _ in state["param_groups"]]
        for group, old in zip(state["param_groups"], current, strict=True):
            if "decoupled_weight_decay" in group:  # torch.optim.Adam and AdamW
                group.setdefault("decoupled", group["decoupled_weight_decay"])
            for name, value in ((state.get("defaults") or self.defaults) | old).items():
                group.setdefault(name, value)
            group["direction"] = same_direction(group["direction"], old.get("direction", "sum"))
        super().__setstate__(state)
        self._plan, self._captured, self._penalties = None, [], PenaltyGradients()
        self._maker.forget()
        self._given = [given(group["params"]) for group in self.param_groups]
