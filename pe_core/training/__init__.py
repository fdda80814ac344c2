"""What a run is, the loop that drives a backend, and how backends are found."""
