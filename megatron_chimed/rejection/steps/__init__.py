"""The steps of a round, a module each.

Each says what it reads (inputs), what else decides it (settings), what it writes (outputs), and does the work (run).
"""
