"""Diagnosis of trainings from their event logs: signs of disease, and a page that shows a run."""
