"""Gymnasium environments made of policy inputs and a reward function, for agents of other libraries.

A row is drawn, the agent acts, and the reward function scores the completion that its actions amount to. Three
environments share this, and are registered when this package is imported:

    rlhf/Label-v0       the one action is a class
    rlhf/Text-v0        every action is a token
    rlhf/Dialogue-v0    ask the customer back, answer with a class, or hand over to a person
"""

from rlhf.errors import UserError

try:
    import gymnasium
except ImportError:
    raise UserError("rlhf.envs: gymnasium is not installed: pip install 'rlhf-pipeline[envs]'") from None

from rlhf.envs.dialogue import DialogueEnv, Tabular
from rlhf.envs.features import model_features
from rlhf.envs.label import LabelEnv
from rlhf.envs.rows import Rows
from rlhf.envs.text import TextEnv, shaping

__all__ = ["DialogueEnv", "LabelEnv", "Rows", "Tabular", "TextEnv", "model_features", "shaping"]

gymnasium.register("rlhf/Label-v0", entry_point="rlhf.envs:LabelEnv")
gymnasium.register("rlhf/Text-v0", entry_point="rlhf.envs:TextEnv")
gymnasium.register("rlhf/Dialogue-v0", entry_point="rlhf.envs:DialogueEnv")
