"""The gold stage: a reward model trained on the half of the preferences that no other stage sees."""

from __future__ import annotations

from dataclasses import replace

from rlhf.stages import reward

STAGE = replace(reward.STAGE, name="gold", order=30)
