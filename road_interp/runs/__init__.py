"""The run folder: its files, what it was made with, and the Hub."""
