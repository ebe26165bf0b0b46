"""One HTML page about runs: what was trained, whether it is well, what it learned, on pictures.

The page holds all it shows and asks the network for nothing. Curves and maps are drawn by our own
SVG and canvas, 23 KB of script, where plotly's would add 4.5 MB to every mail attachment.
"""
