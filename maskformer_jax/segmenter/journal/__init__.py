"""What became of each image of a call, in a file that survives a kill: for later calls, and for other processes.

The processes of a call need nothing of each other: each has a journal of its own in OUT/.predict, and reads those of
the others when it has done its part. Whoever finds every image in them completes the files that belong to all images.
No lock is taken and nobody waits, so a process that was killed holds up none, and any later one can do its images.

A journal is a file of lines. The first describes the call; each other has JSON of an `Entry` and, after a tab, the
record of a dataset writer. A line without its end was cut by a kill, and its image is segmented again. A process that
has ended by itself has written {} last.
"""

from maskformer_jax.segmenter.journal.journal import Journal, Outcome
from maskformer_jax.segmenter.journal.records import FOLDER, WHOLE, Entry, Look, Part, exists

__all__ = ["FOLDER", "WHOLE", "Entry", "Journal", "Look", "Outcome", "Part", "exists"]
