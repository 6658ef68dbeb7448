"""Live sessions: the loaded model, conversations, their files and records."""
