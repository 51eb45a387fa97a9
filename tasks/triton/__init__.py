"""What Triton reads: the model repository of a release and its public name."""
