"""What a process needs of its machine and its neighbours, whatever it computes."""
