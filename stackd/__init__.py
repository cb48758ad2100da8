"""Self-hosted workflow automation: one asyncio process, one SQLite file, nothing lost."""

__version__ = "0.1.0"
