"""The HTTP side: health, API routes by noun, webhook intake, metrics."""
