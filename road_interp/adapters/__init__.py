"""Adapters as values: one, many in a bank, planes owned by tasks, and their files."""
