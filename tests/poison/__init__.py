"""One picture that a model cannot bear: it hangs, crashes or ends the process; neighbours live."""
