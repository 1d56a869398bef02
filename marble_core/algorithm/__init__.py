"""From rewards to one update of the LoRA: advantages, per-reward gradients, balance, update."""
