"""What a run looked like: figures and tables."""
