"""A run folder on disk: its stages, their manifests and lineage, and whether one may be continued."""
