"""From datasets on disk to batches on devices. The only room of the package that imports TensorFlow."""
