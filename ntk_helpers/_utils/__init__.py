"""What all rooms use: checks of arguments, calls of modules, the state of PyTorch, progress."""
