"""Shows a run where people look: TensorBoard, Weights & Biases, MLflow, Trackio."""
