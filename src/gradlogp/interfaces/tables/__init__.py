r"""From any table to columns of numbers that a score is learned of, and back to the same table.

What a column is, is decided once, from the rows that are learned from, and kept with the model:

- A number becomes T(x), monotone and onto, in one column, and comes back on the grid that it was on
  (decimals, multiples of 25). On a grid that is wide beside its spread, such as whole numbers often
  are, it is first spread evenly over its cell, and comes back as its cell.
- A date is a number of days, seconds or whatever holds all of them.
- A category, text of few values, a boolean become a column of 0 and 1 for each level (one for two).
- What has holes, or one value again and again, gets a category beside it: present, missing, that value.
- Text that differs in nearly every row is drawn as it was seen; a constant stays.
"""

from .estimator import TableEstimator as TableEstimator
