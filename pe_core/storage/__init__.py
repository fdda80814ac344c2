"""Files: whole or not at all, read strictly, without pickle."""
