"""Images and prompts become the table of rewards: one file a reward."""
