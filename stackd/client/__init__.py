"""Python client of the HTTP API, and the models both sides share."""
