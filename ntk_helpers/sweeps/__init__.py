"""One function over many parameters, kept on disk."""
