"""What a machine with a GPU can say that none without can (`python -m benchmarks.gpu_check`)."""
