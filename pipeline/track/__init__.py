"""The journal of a run and its way into MLflow."""
