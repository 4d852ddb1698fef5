"""A trained role as a plain model: merged exactly, measured against what was trained, written whole or not at all."""
