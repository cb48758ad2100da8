"""Errors, clock, events, backoff, ids, JSON and log: what every layer may use; imports nothing of stackd."""
