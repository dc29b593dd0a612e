"""MLflow: runs, logged models and versions. `promotion.py` decides which version is champion."""
