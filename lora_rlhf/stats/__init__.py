"""Statistics of evaluation and labelling.

`intervals`: rates and means with 95 % intervals. `win_rates`, `differences`, `bradley_terry`: which system is better.
`ordering`: how well scores order ranked responses. `agreement`: of labelers. `text_metrics`: repetition, variety,
refusals. Functions take sequences of numbers and return plain floats or named tuples.
"""
