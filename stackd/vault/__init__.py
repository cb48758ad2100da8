"""Secrets at rest: the keys they are sealed under, and the credentials that hold them."""
