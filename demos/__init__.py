"""What a newcomer runs: the quickstart, a small media store and the command-line clients."""
