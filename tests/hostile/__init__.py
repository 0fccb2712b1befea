"""Hostile pictures: made by us, mutated by seed, and held to a result or to one named code.

pictures   the sound pictures that everything starts from, and those of INFERD_TEST_ASSETS
anatomy    where a format keeps its parts, lengths and dimensions
mutator    seed and index -> one mutated file, the same on every machine
verdicts   what may come of a file: a sane picture or a code that docs/errors.md lists
watch      resident memory of processes
decoders   many files through decoder processes, each timed and measured
load       many files through the running daemon beside good jobs
run        `python -m tests.hostile.run`: the long run and its tables
files      the worst that were found, kept; their README says what each does
"""
