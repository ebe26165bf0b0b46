"""Numbers that the compiled functions of views share with their callers."""

NOTHING, BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAYSCALE, SOLARIZE, BLUR = range(8)
JITTER = -1  # stands for four operations, in a drawn order
LANES = 8  # numbers in a vector
SPAN = 4 * LANES  # a blur writes as many numbers at once
