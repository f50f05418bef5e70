"""Run folders: their files, the training environment, and the Hugging Face Hub."""
