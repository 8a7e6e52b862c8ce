"""Use of a trained model: from images to segments. No TensorFlow."""
