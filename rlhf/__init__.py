"""Align a language model with preferences: SFT, reward models, DPO and PPO, with evidence that each stage helped."""

__version__ = "0.1.0"
