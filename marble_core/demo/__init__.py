"""The synthetic world of the laptop demo: 64 x 64 pictures of shapes, words and patterns, their prompts and their rewards."""
