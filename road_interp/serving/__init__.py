"""An OpenAI-compatible server for many adapters on one model."""
