"""Records of samples to figures, tables, pictures and pages."""
