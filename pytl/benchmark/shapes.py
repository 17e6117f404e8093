"""Lists of parameter shapes, written from the architectures: what an optimizer sees of a network."""

from collections.abc import Callable
from math import prod

Shape = tuple[int, ...]

_LLAMA_HIDDEN, _LLAMA_FEED_FORWARD, _LLAMA_VOCABULARY = 1024, 2816, 32000
_LLAMA_8B_LAYERS = 32
_LLAMA_MOST_LAYERS = 20  # 0.29e9 parameters; more says nothing new about streams from memory


def elements(shapes: list[Shape]) -> int:
    """The number of parameters."""
    return sum(map(prod, shapes))


def resnet50() -> list[Shape]:
    """161 tensors, 25.557e6 parameters (He et al., CVPR 2016, arXiv:1512.03385), 1,000 classes."""
    shapes: list[Shape] = [(64, 3, 7, 7), *_norm(64)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += _bottleneck(channels, width, shortcut=block == 0)
            channels = 4 * width
    return [*shapes, *_linear(channels, 1000)]


def vit_large() -> list[Shape]:
    """ViT-L/16 at 224 pixels: 296 tensors, 304.3e6 parameters (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929)."""
    width, patch, classes = 1024, 16, 1000
    tokens = 1 + (224 // patch) ** 2
    embedding: list[Shape] = [(1, 1, width), (width, 3, patch, patch), (width,), (1, tokens, width)]
    attention = [*_norm(width), *_linear(width, 3 * width), *_linear(width, width)]
    feed_forward = [*_norm(width), *_linear(width, 4 * width), *_linear(4 * width, width)]
    return [*embedding, *24 * (attention + feed_forward), *_norm(width), *_linear(width, classes)]


def llama(layers: int = _LLAMA_MOST_LAYERS) -> list[Shape]:
    """A decoder of Llama's form with tied embeddings (Touvron et al., 2023, arXiv:2302.13971)."""
    hidden, feed_forward = _LLAMA_HIDDEN, _LLAMA_FEED_FORWARD
    square: Shape = (hidden, hidden)
    gated: list[Shape] = [(feed_forward, hidden), (feed_forward, hidden), (hidden, feed_forward)]
    return [
        (_LLAMA_VOCABULARY, hidden),
        *layers * [square, square, square, square, *gated, (hidden,), (hidden,)],
        (hidden,),
    ]


def llama_within(parameters: float) -> list[Shape]:
    """The deepest ``llama`` of at most this many parameters; at least one layer."""
    return llama(_layers_within(parameters, llama, _LLAMA_MOST_LAYERS))


def _layers_within(parameters: float, stack: Callable[[int], list[Shape]], most: int) -> int:
    a_layer = elements(stack(2)) - elements(stack(1))
    layers = int(parameters - elements(stack(0))) // a_layer
    return max(1, min(layers, most))


def llama_8b(layers: int = _LLAMA_8B_LAYERS) -> list[Shape]:
    """Llama 3 8B: 291 tensors, 8.030e9 parameters, embeddings not tied (Grattafiori et al., 2024, arXiv:2407.21783)."""
    hidden, feed_forward, keys, vocabulary = 4096, 14336, 1024, 128256
    attention: list[Shape] = [(hidden, hidden), (keys, hidden), (keys, hidden), (hidden, hidden)]
    gated: list[Shape] = [(feed_forward, hidden), (feed_forward, hidden), (hidden, feed_forward)]
    embedding: Shape = (vocabulary, hidden)
    return [embedding, *layers * [*attention, *gated, (hidden,), (hidden,)], (hidden,), embedding]


def llama_8b_within(parameters: float) -> list[Shape]:
    """The deepest ``llama_8b`` of at most this many parameters; at least one layer."""
    return llama_8b(_layers_within(parameters, llama_8b, _LLAMA_8B_LAYERS))


def tiny() -> list[Shape]:
    """10,000 tensors of 64 elements."""
    return [_vector(64)] * 10_000


def ones() -> list[Shape]:
    """As many tensors as ResNet-50 has, of one element: what is left is the host's cost."""
    return [_vector(1)] * 161


def huge() -> list[Shape]:
    """One tensor of 134e6 elements."""
    return [(1 << 27,)]


def _bottleneck(channels: int, width: int, *, shortcut: bool) -> list[Shape]:
    shapes: list[Shape] = [(width, channels, 1, 1), *_norm(width), (width, width, 3, 3), *_norm(width)]
    shapes += [(4 * width, width, 1, 1), *_norm(4 * width)]
    return [*shapes, (4 * width, channels, 1, 1), *_norm(4 * width)] if shortcut else shapes


def _vector(length: int) -> Shape:
    return (length,)


def _norm(channels: int) -> list[Shape]:
    return [(channels,), (channels,)]


def _linear(inputs: int, outputs: int) -> list[Shape]:
    return [(outputs, inputs), (outputs,)]
