"""Data: labelled text, behaviours, questions, multi-task data and metrics."""
