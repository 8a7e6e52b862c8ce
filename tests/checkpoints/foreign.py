"""Names in the files of other models, as their publishers store them; of repeated layers, a few."""


def names(text: str) -> list[str]:
    """Lines of names, where {a,b} stands for several."""
    found = []
    for line in text.split():
        found += expand(line)
    return found


def expand(text: str) -> list[str]:
    head, brace, rest = text.partition("{")
    if not brace:
        return [text]
    options, _, tail = rest.partition("}")
    return [head + option + end for option in options.split(",") for end in expand(tail)]


_DETECTRON2_SWIN = """
backbone.patch_embed.{proj,norm}.{weight,bias}
backbone.layers.{0,1,2,3}.blocks.{0,1}.{norm1,norm2,attn.qkv,attn.proj,mlp.fc1,mlp.fc2}.{weight,bias}
backbone.layers.{0,1,2,3}.blocks.{0,1}.attn.{relative_position_bias_table,relative_position_index}
backbone.layers.{0,1,2}.downsample.{reduction.weight,norm.weight,norm.bias}
backbone.norm{0,1,2,3}.{weight,bias}
"""
_DETECTRON2_RESNET = """
backbone.stem.conv1.{weight,norm.weight,norm.bias,norm.running_mean,norm.running_var}
backbone.res{2,3,4,5}.0.{shortcut,conv1,conv2,conv3}.{weight,norm.weight,norm.bias,norm.running_mean,norm.running_var}
"""
_MASK2FORMER_PIXELS = """
sem_seg_head.pixel_decoder.input_proj.{0,1,2}.{0,1}.{weight,bias}
sem_seg_head.pixel_decoder.transformer.level_embed
sem_seg_head.pixel_decoder.transformer.encoder.layers.{0,5}.self_attn.{sampling_offsets,attention_weights}.{weight,bias}
sem_seg_head.pixel_decoder.transformer.encoder.layers.{0,5}.self_attn.{value_proj,output_proj}.{weight,bias}
sem_seg_head.pixel_decoder.transformer.encoder.layers.{0,5}.{norm1,linear1,linear2,norm2}.{weight,bias}
sem_seg_head.pixel_decoder.{adapter_1,layer_1}.{weight,norm.weight,norm.bias}
sem_seg_head.pixel_decoder.mask_features.{weight,bias}
"""
_MASK2FORMER_QUERIES = """
sem_seg_head.predictor.{query_feat,query_embed,level_embed}.weight
sem_seg_head.predictor.transformer_cross_attention_layers.{0,8}.multihead_attn.{in_proj_weight,in_proj_bias}
sem_seg_head.predictor.transformer_cross_attention_layers.{0,8}.{multihead_attn.out_proj,norm}.{weight,bias}
sem_seg_head.predictor.transformer_self_attention_layers.{0,8}.self_attn.{in_proj_weight,in_proj_bias}
sem_seg_head.predictor.transformer_self_attention_layers.{0,8}.{self_attn.out_proj,norm}.{weight,bias}
sem_seg_head.predictor.transformer_ffn_layers.{0,8}.{linear1,linear2,norm}.{weight,bias}
sem_seg_head.predictor.decoder_norm.{weight,bias}
sem_seg_head.predictor.mask_embed.layers.{0,1,2}.{weight,bias}
sem_seg_head.predictor.class_embed.{weight,bias}
criterion.empty_weight
"""
_HUGGINGFACE_SWIN = """
model.pixel_level_module.encoder.embeddings.{patch_embeddings.projection,norm}.{weight,bias}
model.pixel_level_module.encoder.encoder.layers.{0,3}.blocks.0.{layernorm_before,layernorm_after}.{weight,bias}
model.pixel_level_module.encoder.encoder.layers.{0,3}.blocks.0.attention.self.{query,key,value}.{weight,bias}
model.pixel_level_module.encoder.encoder.layers.{0,3}.blocks.0.attention.self.relative_position_bias_table
model.pixel_level_module.encoder.encoder.layers.{0,3}.blocks.0.attention.output.dense.{weight,bias}
model.pixel_level_module.encoder.encoder.layers.{0,1,2}.downsample.{reduction.weight,norm.weight,norm.bias}
model.pixel_level_module.encoder.hidden_states_norms.stage{1,2,3,4}.{weight,bias}
"""
_HUGGINGFACE_SWIN_IN_MEMORY = """
model.pixel_level_module.encoder.swin.embeddings.{patch_embeddings.projection,norm}.{weight,bias}
model.pixel_level_module.encoder.swin.encoder.layers.{0,3}.blocks.0.attention.{q_proj,k_proj,v_proj}.{weight,bias}
model.pixel_level_module.encoder.swin.encoder.layers.{0,1,2}.downsample.{reduction.weight,norm.weight,norm.bias}
model.pixel_level_module.encoder.hidden_states_norms.stage{1,2,3,4}.{weight,bias}
"""
_HUGGINGFACE_MASK2FORMER = """
model.pixel_level_module.decoder.level_embed
model.pixel_level_module.decoder.input_projections.{0,1,2}.{0,1}.{weight,bias}
model.pixel_level_module.decoder.encoder.layers.{0,5}.self_attn.{sampling_offsets,attention_weights}.{weight,bias}
model.pixel_level_module.decoder.encoder.layers.{0,5}.self_attn.{value_proj,output_proj}.{weight,bias}
model.pixel_level_module.decoder.encoder.layers.{0,5}.{self_attn_layer_norm,fc1,fc2,final_layer_norm}.{weight,bias}
model.pixel_level_module.decoder.{adapter_1,layer_1}.{0.weight,1.weight,1.bias}
model.pixel_level_module.decoder.mask_projection.{weight,bias}
model.transformer_module.{queries_embedder,queries_features,level_embed}.weight
model.transformer_module.decoder.layers.{0,8}.self_attn.{q_proj,k_proj,v_proj,out_proj}.{weight,bias}
model.transformer_module.decoder.layers.{0,8}.cross_attn.{in_proj_weight,in_proj_bias,out_proj.weight,out_proj.bias}
model.transformer_module.decoder.layers.{0,8}.{self_attn,cross_attn,final}_layer_norm.{weight,bias}
model.transformer_module.decoder.layers.{0,8}.{fc1,fc2}.{weight,bias}
model.transformer_module.decoder.layernorm.{weight,bias}
model.transformer_module.decoder.mask_predictor.mask_embedder.{0,1,2}.0.{weight,bias}
class_predictor.{weight,bias}
criterion.empty_weight
"""
_EOMT_ORIGINAL_HEADS = """
network.q.weight
network.class_head.{weight,bias}
network.mask_head.{0,2,4}.{weight,bias}
network.upscale.{0,1}.{conv1.weight,conv1.bias,conv2.weight,norm.weight,norm.bias}
network.encoder.{pixel_mean,pixel_std}
network.attn_mask_probs
criterion.empty_weight
"""
_EOMT_ORIGINAL = """
network.encoder.backbone.{cls_token,reg_token,pos_embed}
network.encoder.backbone.patch_embed.proj.{weight,bias}
network.encoder.backbone.blocks.{0,23}.{norm1,norm2,attn.qkv,attn.proj,mlp.fc1,mlp.fc2}.{weight,bias}
network.encoder.backbone.blocks.{0,23}.{ls1,ls2}.gamma
network.encoder.backbone.norm.{weight,bias}
"""
_EOMT_ORIGINAL_DINOV3 = """
network.encoder.backbone.patch_embed.{cls_token,register_tokens,patch_embeddings.weight,patch_embeddings.bias}
network.encoder.backbone.blocks.{0,23}.{norm1,norm2}.{weight,bias}
network.encoder.backbone.blocks.{0,23}.attention.{q_proj,k_proj,v_proj,o_proj}.weight
network.encoder.backbone.blocks.{0,23}.{layer_scale1,layer_scale2}.lambda1
network.encoder.backbone.blocks.{0,23}.mlp.{up_proj,down_proj}.{weight,bias}
network.encoder.backbone.norm.{weight,bias}
"""
_EOMT_HUGGINGFACE = """
query.weight
embeddings.{cls_token,register_tokens,position_embeddings.weight}
embeddings.patch_embeddings.projection.{weight,bias}
layers.{0,23}.{norm1,norm2}.{weight,bias}
layers.{0,23}.attention.{q_proj,k_proj,v_proj,out_proj}.{weight,bias}
layers.{0,23}.{layer_scale1,layer_scale2}.lambda1
layernorm.{weight,bias}
class_predictor.{weight,bias}
mask_head.{fc1,fc2,fc3}.{weight,bias}
upscale_block.block.{0,1}.{conv1.weight,conv1.bias,conv2.weight,layernorm2d.weight,layernorm2d.bias}
attn_mask_probs
criterion.empty_weight
"""
_META = """
cls_token
patch_embed.proj.{weight,bias}
blocks.{0,11}.{norm1,norm2,attn.qkv,attn.proj}.{weight,bias}
norm.{weight,bias}
"""
_META_DINOV2 = """
register_tokens
mask_token
pos_embed
blocks.{0,11}.{ls1,ls2}.gamma
"""
_META_DINOV3 = """
storage_tokens
mask_token
rope_embed.periods
blocks.{0,11}.attn.qkv.bias_mask
blocks.{0,11}.{ls1,ls2}.gamma
"""
_HUGGINGFACE_DINOV2 = """
embeddings.{cls_token,mask_token,register_tokens,position_embeddings}
embeddings.patch_embeddings.projection.{weight,bias}
encoder.layer.{0,11}.{norm1,norm2,attention.output.dense}.{weight,bias}
encoder.layer.{0,11}.attention.attention.{query,key,value}.{weight,bias}
encoder.layer.{0,11}.{layer_scale1,layer_scale2}.lambda1
layernorm.{weight,bias}
"""
_HUGGINGFACE_DINOV3 = """
embeddings.{cls_token,mask_token,register_tokens,patch_embeddings.weight,patch_embeddings.bias}
layer.{0,11}.{norm1,norm2,attention.o_proj,mlp.up_proj,mlp.down_proj}.{weight,bias}
layer.{0,11}.attention.{q_proj,v_proj}.{weight,bias}
layer.{0,11}.attention.k_proj.weight
layer.{0,11}.{layer_scale1,layer_scale2}.lambda1
norm.{weight,bias}
"""

MASK2FORMER_ORIGINAL = {
    "Swin": names(_DETECTRON2_SWIN + _MASK2FORMER_PIXELS + _MASK2FORMER_QUERIES),
    "ResNet": names(_DETECTRON2_RESNET + _MASK2FORMER_PIXELS + _MASK2FORMER_QUERIES),
    "older queries": [
        name.replace("query_feat", "static_query")
        for name in names(_DETECTRON2_RESNET + _MASK2FORMER_PIXELS + _MASK2FORMER_QUERIES)
    ],
    "older head": [
        name.replace(".pixel_decoder", "")
        for name in names(_DETECTRON2_RESNET + _MASK2FORMER_PIXELS + _MASK2FORMER_QUERIES)
    ],
}
MASK2FORMER_HUGGINGFACE = {
    "files": names(_HUGGINGFACE_SWIN + _HUGGINGFACE_MASK2FORMER),
    "in memory": names(_HUGGINGFACE_SWIN_IN_MEMORY + _HUGGINGFACE_MASK2FORMER),
}
EOMT_ORIGINAL = {
    "DINOv2": names(_EOMT_ORIGINAL + _EOMT_ORIGINAL_HEADS),
    "network alone": [name.removeprefix("network.") for name in names(_EOMT_ORIGINAL + _EOMT_ORIGINAL_HEADS)],
}
EOMT_DINOV3_ORIGINAL = {"DINOv3": names(_EOMT_ORIGINAL_DINOV3 + _EOMT_ORIGINAL_HEADS)}
EOMT_HUGGINGFACE = {
    "plain MLP": names(_EOMT_HUGGINGFACE + "layers.{0,23}.mlp.{fc1,fc2}.{weight,bias}"),
    "gated MLP": names(_EOMT_HUGGINGFACE + "layers.{0,23}.mlp.{gate_proj,up_proj,down_proj}.{weight,bias}"),
}
EOMT_HUGGINGFACE_PACKED = {
    "gated MLP": names(_EOMT_HUGGINGFACE + "layers.{0,23}.mlp.{weights_in,weights_out}.{weight,bias}"),
}
EOMT_DINOV3_HUGGINGFACE = {
    "DINOv3": [
        name.replace("patch_embeddings.projection", "patch_embeddings").replace("out_proj", "o_proj")
        for name in names(_EOMT_HUGGINGFACE + "layers.{0,23}.mlp.{up_proj,down_proj}.{weight,bias}")
        if "position_embeddings" not in name
    ],
}
META_DINOV2 = {
    "MLP": names(_META + _META_DINOV2 + "blocks.{0,11}.mlp.{fc1,fc2}.{weight,bias}"),
    "gated MLP": names(_META + _META_DINOV2 + "blocks.{0,39}.mlp.{w12,w3}.{weight,bias}"),
}
TIMM_DINOV2 = {
    "MLP": names(_META + "reg_token pos_embed blocks.{0,11}.{ls1,ls2}.gamma blocks.{0,11}.mlp.{fc1,fc2}.{weight,bias}")
}
META_DINOV3 = {
    "MLP": names(_META + _META_DINOV3 + "blocks.{0,11}.mlp.{fc1,fc2}.{weight,bias}"),
    "gated MLP": names(_META + _META_DINOV3 + "blocks.{0,31}.mlp.{w1,w2,w3}.{weight,bias}"),
}
HUGGINGFACE_DINOV2 = {
    "MLP": names(_HUGGINGFACE_DINOV2 + "encoder.layer.{0,11}.mlp.{fc1,fc2}.{weight,bias}"),
    "gated MLP": names(_HUGGINGFACE_DINOV2 + "encoder.layer.{0,39}.mlp.{weights_in,weights_out}.{weight,bias}"),
}
HUGGINGFACE_DINOV2_IN_MEMORY = {
    "gated MLP": [
        name.replace("attention.attention.query", "attention.q_proj").replace(
            "attention.output.dense", "attention.o_proj"
        )
        for name in names(_HUGGINGFACE_DINOV2 + "encoder.layer.{0,39}.mlp.{gate_proj,up_proj,down_proj}.{weight,bias}")
    ],
}
HUGGINGFACE_DINOV3 = {
    "files": names(_HUGGINGFACE_DINOV3),
    "with a prefix": [name.replace("layer.", "model.layer.") for name in names(_HUGGINGFACE_DINOV3)],
}
OTHERS = {
    "MaskFormer without heads": names(
        "pixel_level_module.encoder.embedder.embedder.convolution.weight transformer_module.queries_embedder.weight"
    ),
    "DETR of transformers": names(
        "model.query_position_embeddings.weight model.encoder.layers.0.self_attn.{q_proj,k_proj}.weight "
        "class_labels_classifier.{weight,bias} bbox_predictor.layers.{0,1,2}.{weight,bias}"
    ),
    "SegFormer of transformers": names(
        "segformer.encoder.patch_embeddings.0.proj.{weight,bias} segformer.encoder.layer_norm.0.{weight,bias}"
    ),
    "DINOv2 without registers": names(
        "cls_token pos_embed patch_embed.proj.{weight,bias} blocks.0.attn.qkv.{weight,bias} blocks.0.ls1.gamma"
    ),
    "BERT": names("bert.embeddings.word_embeddings.weight"),
}
