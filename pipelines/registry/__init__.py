"""MLflow: runs, logged models and versions. `promotion.py` decides who is champion."""
