"""MLflow: runs, logged models, registered versions, and who is champion."""
