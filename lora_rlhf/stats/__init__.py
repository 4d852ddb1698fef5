"""Statistics of evaluation and labelling: intervals, tests, preference, ratings, agreement, measures of text."""
