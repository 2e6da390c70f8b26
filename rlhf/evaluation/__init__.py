"""Measures policies and reward models: paired comparisons with intervals, the gate, over-optimisation, regressions."""
