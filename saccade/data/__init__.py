"""Pictures in, batches of views out."""

from .source import BadPicture, Source, open_source

__all__ = ["BadPicture", "Source", "open_source"]
