"""What is trained: each stage a record of hooks that the trainer calls."""
