"""Adapters as values: single adapters, banks of adapters, planes owned by tasks, and their files."""
