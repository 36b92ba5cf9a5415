"""Score-based generative classification of mammograms, tracked with MLflow."""

__version__ = "0.1.0"
