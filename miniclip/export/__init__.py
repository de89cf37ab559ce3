"""A trained model for other libraries: their folders, ONNX, a card, the Hub."""
