"""GenEval: its rules, its detector and its colours. Empty, so that prepare imports no torch on its way to the rules."""
