"""What every plugin has to pass, a file for packages, methods and the other parts each."""
