"""What is optimised and how: optimiser, schedule, loss."""
