"""What a project will take, before it runs: memory by part and time of each stage, on this machine or another."""

from rlhf.preflight.estimates import Models, StageEstimate, estimate, estimate_seconds
from rlhf.preflight.lengths import RowLengths
from rlhf.preflight.machine import Machine

__all__ = ["Machine", "Models", "RowLengths", "StageEstimate", "estimate", "estimate_seconds"]
