"""How much to transfer: measured before training, and recommended with reasons."""

from pytl.advice.advise import Advice, advise
from pytl.advice.evidence import Evidence, Gain, Layer
from pytl.advice.rules import Reason, Recommendation, default_rules

__all__ = ["Advice", "Evidence", "Gain", "Layer", "Reason", "Recommendation", "advise", "default_rules"]
