"""Score distillation: the loop, its loss, prompts per view, and checkpoints."""
