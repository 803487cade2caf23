"""Who gives answers their rewards: a reward model, a command of the user's, judges by a rubric, or sums of them."""
