"""What a training changed, with intervals, and whether it may be promoted."""
