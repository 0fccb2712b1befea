"""Command-line clients, one for each thing a picture may be asked for."""
