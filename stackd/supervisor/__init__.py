"""Starts, restarts and drains services. Knows no job."""
