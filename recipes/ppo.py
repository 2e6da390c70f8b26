"""Stage ppo: train the SFT model online, on its own replies, against a reward model or any reward function.

    accelerate launch recipes/ppo.py --config recipes/quickstart.yaml [--advantage rloo --samples_per_prompt 4 …]

Every field of `rlhf.ppo.config.PPOConfig` is an option. The YAML names model, data, rewards and the other
stages; the result goes to runs/NAME/ppo, where `rlhf run` and the stages after it find it.
"""

import sys

from rlhf.pipeline.stage import launch

if __name__ == "__main__":
    sys.exit(launch("ppo"))
