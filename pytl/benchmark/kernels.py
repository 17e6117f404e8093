"""Parts of pytl's step alone, planned once: the look, the step with weights given, and the whole in a CUDA graph."""

import torch

from pytl.benchmark.parameters import ParameterSet
from pytl.benchmark.rivals import LR, SP_DECAY
from pytl.benchmark.timing import Step
from pytl.directions import find
from pytl.ops import adamw
from pytl.ops.operands import Operands, compute_dtype
from pytl.ops.step import look, step_weights
from pytl.ops.tensor_list import TensorList, place

_OPTIONS = adamw.AdamWOptions(
    lr=LR,
    sp_decay=SP_DECAY,
    weight_decay=0.0,
    decoupled=True,
    direction=find("dtnh"),
    granularity="tensor",
    gradient_factor=1.0,
)


def gram_alone(p: ParameterSet) -> Step:
    """Reads w, g and w0; writes three numbers a tensor."""
    tensors = _planned(p, moments=0)
    return lambda: look(tensors, [_OPTIONS])


def update_alone(p: ParameterSet) -> Step:
    """Reads and writes w and the moments, reads g and w0; the directions' weights lie ready."""
    tensors = _planned(p, moments=2)
    look(tensors, [_OPTIONS])
    weights = step_weights(tensors.rows, tensors.group_of, [_OPTIONS])
    return lambda: adamw.run(tensors, [_OPTIONS], weights)


def _planned(p: ParameterSet, moments: int) -> TensorList:
    states = [[torch.zeros_like(w, dtype=compute_dtype(w.dtype)) for w in p.weights] for _ in range(moments)]
    steps = [torch.zeros((), device=w.device) for w in p.weights]
    operands = Operands.lists(p.weights, p.gradients, states=states, start=p.starts, step=steps)
    return TensorList(operands, on_core=place(operands, fused=True))


class Captured:
    """The first step is taken as it is, the second is captured in a CUDA graph, and from then on that is replayed."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._graph: torch.cuda.CUDAGraph | None = None
        self._began = False

    def __call__(self) -> None:
        if not self._began:
            self._began = True
            self._step()
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._step()
        self._graph.replay()
