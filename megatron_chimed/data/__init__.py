"""Raw sources to records: read, cleaned, redacted, deduplicated, every row accounted for."""
