"""What is minimised: pure functions on tensors."""
