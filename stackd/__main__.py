"""`stackd`, `python -m stackd`."""

import sys

from stackd.core.loading import loading

__all__ = ["main"]


def main() -> None:
    """Run the command line. Loading it takes a moment, in which Ctrl-C may come."""
    try:
        with loading():
            from stackd.cli.app import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
