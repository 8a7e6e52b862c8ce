"""From the segments of an example to padded training targets."""

import tensorflow as tf


def index_map(segment_map: tf.Tensor, is_crowd: tf.Tensor) -> tf.Tensor:
    """A stored segment map (0 void, v the segment at v - 1) as indices, -1 for void and for crowds."""
    index = tf.concat([[-1], tf.where(is_crowd, -1, tf.range(tf.size(is_crowd)))], axis=0)
    return tf.gather(index, tf.cast(segment_map, tf.int32))


def padded_targets(
    segment_ids: tf.Tensor, labels: tf.Tensor, is_crowd: tf.Tensor, max_segments: int, keep_emptied: bool
) -> dict[str, tf.Tensor]:
    """Labels and validity of the segments, padded to `max_segments`.

    Args:
        segment_ids: [H, W] int32 index of each pixel's segment after cropping, -1 for void.
        labels, is_crowd: of all segments of the image. Crowds are no targets.
        keep_emptied: keep segments that the crop has emptied as targets with an empty mask, as the
            original's panoptic mapper does; its semantic mapper drops them.
    """
    count = tf.size(labels)
    valid = ~is_crowd
    if not keep_emptied:
        pixels = tf.math.bincount(tf.reshape(segment_ids, [-1]) + 1, minlength=count + 1)[1 : count + 1]
        valid = valid & (pixels > 0)
    padding = [[0, max_segments - count]]
    return {
        "segment_ids": tf.cast(segment_ids, tf.int16),
        "labels": tf.ensure_shape(tf.pad(tf.cast(labels, tf.int32), padding), [max_segments]),
        "valid": tf.ensure_shape(tf.pad(valid, padding), [max_segments]),
    }
