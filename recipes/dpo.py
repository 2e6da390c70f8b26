"""Stage dpo: align the SFT model with preference pairs, no reward model needed.

    accelerate launch recipes/dpo.py --config recipes/quickstart.yaml [--learning_rate 1e-5 …]

Every field of the trainer's config class is an option. The YAML names model, data and the other stages; the result goes
to runs/NAME/dpo, where `rlhf run` and the stages after it find it.
"""

import sys

from rlhf.pipeline.stage import launch

if __name__ == "__main__":
    sys.exit(launch("dpo"))
