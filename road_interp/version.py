"""The installed version of the package."""

from importlib.metadata import version

__version__ = version("road-interp")
