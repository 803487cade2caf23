"""Published files of test sets to items; rows that are none are counted."""
