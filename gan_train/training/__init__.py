"""The training loop and its parts. `trainer.py` has the loop, `Trainer.step` a whole step."""
