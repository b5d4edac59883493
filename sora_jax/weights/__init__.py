"""Other people's checkpoints: their files, their names, and the way in and out."""
