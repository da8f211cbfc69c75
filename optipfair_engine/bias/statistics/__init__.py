"""From differences to numbers: metrics, intervals, rankings, and the comparison of two models."""
