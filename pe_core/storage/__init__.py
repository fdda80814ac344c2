"""Files that are whole or not there, read strictly and without pickle."""
