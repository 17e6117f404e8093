"""What DELTA adds to a training step's memory: the source's features, and nothing else where it is done well."""

import gc
from collections.abc import Callable, Iterable

from torch import Tensor

from pytl.benchmark.devices import Device
from pytl.benchmark.features.contenders import FEATURES
from pytl.benchmark.features.training import TrainingSet
from pytl.benchmark.records import Memory, Peak

_PLAIN = "plain-step"
_WITH_DELTA = ("pytl-delta", "pytl-delta-ready", "pytl-delta-apart", "pytl-delta-apart-ready", "eager-delta")
_BY_NAME = {contender.name: contender for contender in FEATURES}


def memory_of_steps(case: str, words: str, draw: Callable[[], TrainingSet], device: Device) -> Memory:
    t = draw()
    _BY_NAME["pytl-delta"].build(t)
    plain, features = _peak(_PLAIN, draw, device), _features(t)
    peaks = {name: _peak(name, draw, device) for name in _WITH_DELTA}
    return Memory(
        case=case,
        words=words,
        plain_bytes=plain,
        weights_bytes=_bytes(t.model.state_dict().values()),
        source_weights_bytes=_bytes(t.source.state_dict().values()),
        source_features_bytes=features,
        peaks=[Peak(name, _BY_NAME[name].words, peak, peak - plain - features) for name, peak in peaks.items()],
    )


def _peak(name: str, draw: Callable[[], TrainingSet], device: Device) -> int:
    """Of the third step: by then moments, plans and what the first pass finds out are there."""
    t = draw()
    step = _BY_NAME[name].build(t)
    step()
    step()
    t.forget()
    gc.collect()
    return device.peak_bytes(step) + (_features(t) if t.is_ready else 0)


def _features(t: TrainingSet) -> int:
    """Of a batch at the layers that are compared; those of the batch before lie ready."""
    assert t.delta is not None
    images, _ = t.batches[0]
    return _bytes(t.delta.source(images).values())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
