"""Durable jobs: the pure decisions, the SQL, and the verbs as functions of a transaction."""
