"""PPO, RLOO, GRPO and REINFORCE on `transformers.Trainer`."""
