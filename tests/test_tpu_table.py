"""The page of compiled recipes."""

from benchmarks import tpu_table


def test_every_published_recipe_has_settings():
    names = tpu_table.recipes()
    assert {"ade20k:resnet50", "mask2former_coco_instance:swin_tiny", "eomt_coco_panoptic:dinov2_large_640"} <= {*names}
    for name in names:
        assert next(tpu_table.attempts(name, "v5e", 1, "bfloat16", "low")).topology.startswith("v5e:")


def test_the_page_is_written_from_the_results():
    cache = tpu_table.Cache(tpu_table.CACHE)
    page = tpu_table.render(cache, tpu_table.recipes(), ["v5e", "v6e", "v4"], 1, "bfloat16")
    assert tpu_table.PAGE.read_text(encoding="utf-8") == page
