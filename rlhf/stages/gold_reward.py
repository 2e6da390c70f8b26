"""The gold_reward stage: a reward model trained on the half of the preferences that no other stage sees.

Source: the gold reward model of Gao et al., "Scaling Laws for Reward Model Overoptimization" (2022), which the proxy
that is maximised is compared with. Theirs labels the data; this one learns from pairs of its own.
"""

from __future__ import annotations

from dataclasses import replace

from rlhf.stages import reward

STAGE = replace(
    reward.STAGE,
    name="gold_reward",
    order=30,
    label="Gold reward model",
    method="A reward model, trained on the half of the preference pairs that the other stages leave out",
    own_half=True,
)
