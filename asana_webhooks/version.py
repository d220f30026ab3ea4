"""The package's version, in a file of its own because reading it from the installed metadata slows every import."""

__all__ = ["__version__"]

__version__ = "0.1.0"
