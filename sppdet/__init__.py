"""sppdet: an SPP-net object detector."""

__version__ = "0.1.0"
