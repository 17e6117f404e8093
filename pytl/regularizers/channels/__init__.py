"""How much each channel of a layer matters for the target task: DELTA's weights, their scores, file and figure."""

from pytl.regularizers.channels.weights import ChannelWeights, channel_weights, weights_from_scores

__all__ = ["ChannelWeights", "channel_weights", "weights_from_scores"]
