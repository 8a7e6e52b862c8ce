"""The loss of mask classification: classes of all queries, masks of the matched ones (MaskFormer, section 3.2)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from maskformer_jax.errors import UserError
from maskformer_jax.losses import mask_terms
from maskformer_jax.losses.mask_terms import MASK_TERMS
from maskformer_jax.losses.matching import Matcher, class_cost
from maskformer_jax.losses.normalizers import Normalizers, mask_weights, mean_weights
from maskformer_jax.losses.pairs import sum_over_pairs
from maskformer_jax.losses.samplers import SAMPLERS, Cells, Pixels, Sampler
from maskformer_jax.ops.dropout import keys_of, split_train
from maskformer_jax.parsing import check_at_least, check_choice, check_fields, construct
from maskformer_jax.types import Prediction, Targets, Train

Scalars = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class SetCriterion:
    """Matches queries with segments in every layer and compares them: the section `loss` of the settings.

    Args:
        matcher: "scipy" (on the host), "optax" (on the device), or "fixed", query k for class k (table 4).
        match_at: where masks are compared for matching: {"name": one of SAMPLERS, and its arguments}.
        compare_at: where masks are compared for the loss; as `match_at`.
        mask_term: "focal", or "bce" for binary cross-entropy.
        class_weight: weight of the class term, in cost and loss alike.
        mask_weight: weight of the mask term.
        dice_weight: weight of the dice term.
        no_object_weight: weight of unmatched queries within the class term.
        images_per_gpu: images that the original had on one GPU, over which it averages the class term; 0 for one
            average over the batch.
        num_queries: Q; the network's, no setting.
    """

    COST_TERMS: ClassVar[tuple[str, ...]] = ("class", "mask", "dice")  # of the matching cost, in order for reports

    num_queries: int
    matcher: Matcher = Matcher("scipy")  # noqa: RUF009
    match_at: Sampler = Cells()  # noqa: RUF009
    compare_at: Sampler = Pixels()  # noqa: RUF009
    mask_term: str = "focal"
    class_weight: float = 1.0
    mask_weight: float = 20.0
    dice_weight: float = 1.0
    no_object_weight: float = 0.1
    images_per_gpu: int = 0

    def __post_init__(self):
        check_choice("mask_term", self.mask_term, MASK_TERMS)
        check_at_least(0, images_per_gpu=self.images_per_gpu)

    def check(self, num_segments: int, num_classes: int, queries_setting: str = "num_queries") -> None:
        """Raises UserError if images of up to that many segments, of K classes, cannot be learned.

        Args:
            queries_setting: what the message calls the setting of the number of queries.
        """
        self.matcher.check(self.num_queries, num_classes)
        if self.num_queries < num_segments:
            raise UserError(
                f"an image has {num_segments} segments, but the model has {self.num_queries} queries, and each segment "
                f"needs one. Set {queries_setting} to at least {num_segments}, or "
                f"config.data.max_segments={self.num_queries} to learn the largest segments of such images."
            )

    def normalizers(self, targets: Targets) -> Normalizers:
        """Per-image weights, from the targets of the whole batch.

        The class term is averaged over queries by their weights; how many of them match follows from the targets. The
        other terms are divided by the number of segments.
        """
        matched = self.matcher.count(targets, self.num_queries).astype(jnp.float32)
        weight = matched + self.no_object_weight * (self.num_queries - matched)
        return Normalizers(mean_weights(weight, self.images_per_gpu), mask_weights(targets.valid, self.images_per_gpu))

    def cost_terms(self, prediction: Prediction, targets: Targets, train: Train | None) -> dict[str, jax.Array]:
        """The weighted terms of the matching cost by name, [L, B, Q, N] each.

        Columns of segments that are not valid are undefined.
        """
        # Unfolded for all queries: matching needs every pair, and the products are the bulk of its cost.
        logits, target = self.match_at.of_all(prediction, targets, train)
        _, pairwise = MASK_TERMS[self.mask_term]
        return {
            "class": self.class_weight * class_cost(prediction.class_logits, targets),
            "mask": self.mask_weight * pairwise(logits, target),
            "dice": self.dice_weight * mask_terms.pairwise_dice(logits, target),
        }

    def match(
        self, prediction: Prediction, targets: Targets, train: Train | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """The query of each segment [L, B, N], -1 for none, and whether the costs of each image were finite [L, B].

        No gradient flows through it.
        """
        with jax.named_scope("matching"):
            # On the input: a callback has no derivative, and JAX would ask for one.
            terms = self.cost_terms(jax.lax.stop_gradient(prediction), targets, train)
            return self.matcher(sum(terms.values()), targets)

    def __call__(
        self,
        prediction: Prediction,
        targets: Targets,
        normalizers: Normalizers | None = None,
        train: Train | None = None,
    ) -> tuple[jax.Array, Scalars]:
        """The weighted sum of all terms of all layers.

        Args:
            normalizers: of these images within a larger batch; None if they are the whole batch.
            train: keys for samplers that draw places.

        Returns:
            The loss, and scalars: "loss"; "loss_class", "loss_mask" and "loss_dice" of the last layer, and with the
            suffix "_0", "_1", ... of the others, unweighted; "unmatched_images", the number of failed matchings.
        """
        normalizers = self.normalizers(targets) if normalizers is None else normalizers
        match_train, pairs_train = split_train(train, 2)
        assignment, ok = self.match(prediction, targets, match_train)
        total, terms = self.terms(prediction, targets, assignment, normalizers, pairs_train)
        return total, {"loss": total, "unmatched_images": jnp.sum(~ok), **by_layer(terms)}

    def terms(
        self,
        prediction: Prediction,
        targets: Targets,
        assignment: jax.Array,
        normalizers: Normalizers,
        train: Train | None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of an assignment, and its unweighted terms [L] by name."""
        class_term = _class_term(
            prediction.class_logits, targets, assignment, self.no_object_weight, normalizers.classes
        )
        masks, (mask_term, dice_term) = sum_over_pairs(
            self._pair_terms,
            (self.mask_weight, self.dice_weight),
            prediction,
            targets.segment_ids,
            assignment,
            normalizers.masks,
            keys_of(train),
            self.compare_at.num_places(prediction, targets),
        )
        # All layers weigh the same, as in the original's deep supervision.
        total = self.class_weight * jnp.sum(class_term) + masks
        return total, {"class": class_term, "mask": mask_term, "dice": dice_term}

    def _pair_terms(
        self, logits: jax.Array, segment_ids: jax.Array, segment: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        """Mask and dice terms [2, L, n] of pairs.

        Void and padding are background of every mask. Segments without a pixel, which a crop has emptied, are, too:
        their queries learn the class with an empty mask, as the original's do.
        """
        places = self.compare_at.of_pairs(logits, segment_ids, segment, key)
        of_pairs, _ = MASK_TERMS[self.mask_term]
        return jnp.stack([of_pairs(*places), mask_terms.dice(*places)])


def make_set_criterion(
    num_queries: int | None,
    *,
    matcher: str = "scipy",
    match_at: Mapping[str, Any] | None = None,
    compare_at: Mapping[str, Any] | None = None,
    cls: type[SetCriterion] = SetCriterion,
    **arguments: Any,
) -> SetCriterion:
    """A SetCriterion from plain values; see its arguments."""
    if num_queries is None:
        raise UserError("name is 'set', but the model has no queries to match; set config.loss.name='per_pixel'")
    samplers = {
        "match_at": construct(SAMPLERS, match_at or {"name": "cells"}, "match_at"),
        "compare_at": construct(SAMPLERS, compare_at or {"name": "pixels"}, "compare_at"),
    }
    return cls(num_queries, Matcher(matcher), **samplers, **check_fields(cls, arguments))


def by_layer(terms: dict[str, jax.Array]) -> Scalars:
    """Terms [L] as one scalar for each layer; the last has no suffix."""
    scalars = {}
    for name, values in terms.items():
        for layer in range(len(values)):
            suffix = "" if layer == len(values) - 1 else f"_{layer}"
            scalars[f"loss_{name}{suffix}"] = values[layer]
    return scalars


def _class_term(
    class_logits: jax.Array, targets: Targets, assignment: jax.Array, no_object_weight: float, weight: jax.Array
) -> jax.Array:
    """Cross-entropy [L] over all queries, with per-image weights [B]."""
    queries, no_object = class_logits.shape[2], class_logits.shape[3] - 1
    # Comparisons instead of a scatter, which accelerators run one value after another.
    matches = assignment[..., None, :] == jnp.arange(queries)[:, None]
    label = jnp.sum(jnp.where(matches, targets.labels[:, None, :], 0), axis=-1)
    expected = jnp.where(jnp.any(matches, axis=-1), label, no_object)

    log_probs = jax.nn.log_softmax(class_logits, axis=-1)
    negative_log = -jnp.take_along_axis(log_probs, expected[..., None], axis=-1)[..., 0]
    query_weight = jnp.where(expected == no_object, no_object_weight, 1.0)
    return jnp.sum(query_weight * negative_log * weight[:, None], axis=(1, 2))
