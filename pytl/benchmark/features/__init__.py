"""``pytl bench features``: operations on features, forward and backward, and a training step with DELTA."""
