"""Labelled text, behaviours, questions, sets of several tasks, and metrics."""
