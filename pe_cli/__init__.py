"""The command `pe`."""

from pe_cli.main import main

__all__ = ["main"]
