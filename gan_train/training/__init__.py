"""The training loop (`trainer.py`) and its parts. `Trainer.step` is a whole training step."""
