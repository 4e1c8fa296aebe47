"""What an instruction of the machine does (see `tracing` and `machine`)."""

(
    ADD, SUB, MUL, DIV, MAX, MIN, LT, LE, EQ, ATAN2, POW, SUM, MOST, DOT, WHERE,
    NEG, EXP, LOG, LOG1P, EXPM1, SQRT, ABS, SIGN, SIN, COS, TANH, ATAN, ERF, ERFC, LGAMMA, DIGAMMA,
    SIGMOID, FLOOR,
) = range(33)  # fmt: skip
"""From `NEG` on to one number; `SUM`, `MOST` and `DOT` reduce a line of numbers to one."""
