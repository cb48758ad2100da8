"""Apps: what their definitions say, and what can run their actions and triggers."""
