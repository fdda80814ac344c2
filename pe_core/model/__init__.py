"""What a model is: its config, its parameters, its random numbers and what a call accepts."""
