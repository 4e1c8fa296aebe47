r"""From any table to columns of numbers, for a score to learn, and back to the same table.

The kind of a column is decided once, from the training rows, and stored with the model:

- A number becomes T(x), monotone and onto, in one column, and is returned on its original grid
  (decimals, multiples of 25). On a grid that is coarse compared with its spread, such as integers often
  are, it is first spread evenly over its cell, and returned as its cell.
- A date is a number of days, seconds or whatever unit represents all of them.
- A category, text with few values, a boolean become a column of 0 and 1 for each level (one for two).
- A column with missing values, or with one frequent value, also gets a category: present, missing, that
  value.
- Text that differs in nearly every row is drawn from the values seen; a constant stays.
"""

from .estimator import TableEstimator as TableEstimator
