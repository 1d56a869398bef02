"""What the balancing sees and what it should see: a bank of gradients at a fixed policy, and the tables made of it.

docs/signal.md says how to read the tables.
"""
