"""Stage kto: align the SFT model with completions that were judged good or bad, one at a time.

    accelerate launch recipes/kto.py --config recipes/quickstart.yaml --learning_rate 1e-5

Every field of the trainer's config class is an option. The YAML names model, data and stages. One without a kto stage,
such as this one, needs `kto: {}` under `stages:` or at least one option. The result goes to runs/NAME/kto, where
`rlhf run` and the stages after it find it.
"""

import sys

from rlhf.pipeline.stage import launch

if __name__ == "__main__":
    sys.exit(launch("kto"))
