"""Records to packed rows: rendered, made to fit, packed, and read as a memory map."""
