"""Makes a dataset with Apache Beam (extra "beam"), on whatever it runs: a machine, or a cluster.

One worker lists the images, and all of them make examples. So the pipeline that is sent to a cluster stays small, and
annotations of any size are read where they are used.
"""

import pickle
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline.summary import Summary


def examples(makes: Callable[[], Iterator[Callable[[], Any]]], num_classes: int, summary: epath.Path) -> Any:
    """The `PTransform` that gives the keys and examples of a split to TFDS.

    Args:
        makes: lists what makes each example, as of `SchemaBuilder.makes`. Pickled, as all that it lists.
        num_classes: of the dataset.
        summary: where the `Summary` of the split is written, pickled.

    Raises:
        UserError: if Apache Beam is not installed.
    """
    try:
        import apache_beam as beam
    except ImportError as error:
        raise UserError(f'apache-beam is not installed ({error}): pip install "maskformer_jax[beam]"') from error

    class Merge(beam.CombineFn):
        """The summary of all images."""

        def create_accumulator(self) -> Summary:
            return Summary(num_classes)

        def add_input(self, found: Summary, other: Summary) -> Summary:
            return found.merge(other)

        def merge_accumulators(self, found: Any) -> Summary:
            merged = self.create_accumulator()
            for other in found:
                merged.merge(other)
            return merged

        def extract_output(self, found: Summary) -> Summary:
            return found

    @beam.ptransform_fn
    def make(pipeline):
        made = (
            pipeline
            | beam.Create([None])
            | "List" >> beam.FlatMap(lambda _: makes())
            | "Spread" >> beam.Reshuffle()
            | "Make" >> beam.Map(lambda call: call())
        )
        _ = (
            made
            | "Summarize" >> beam.Map(lambda example: example.summary)
            | "Merge" >> beam.CombineGlobally(Merge())
            | "Write summary" >> beam.Map(lambda found: summary.write_bytes(pickle.dumps(found)))
        )
        return made | "Examples" >> beam.Map(lambda example: (example.image_id, example.example))

    return make()
