"""One training loop: loop, tasks, checkpoint."""
