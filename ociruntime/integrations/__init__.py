"""The package in other programs: notebooks and kernels of Jupyter. Each module needs the libraries of its extra."""
