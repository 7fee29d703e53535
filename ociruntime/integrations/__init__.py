"""The package in other programs, such as Jupyter and OpenTelemetry. Each module needs the libraries of its extra."""
