"""The synthetic world of the laptop demo: 64 x 64 images of shapes, words and patterns, their prompts and their rewards."""
