"""SFT, reward models, DPO, evaluation and publishing over one dataset layer."""

__version__ = "0.1.0"
