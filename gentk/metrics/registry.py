"""Published weights of the field's metrics; `gentk.recipe.weights` says how one of them is found."""

from __future__ import annotations

from gentk.recipe.weights import Weights

# Digits beyond those in a name are what independent public projects state alike for files that they fetched.
INCEPTION = Weights(
    "pt_inception-2015-12-05-6726825d.pth",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    95_628_359,
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "Apache-2.0",
    "InceptionV3 of FID, KID and IS: 566 tensors; as weights-inception-2015-12-05-6726825d.pth in torch-fidelity",
)
DINOV2_VITL14 = Weights(
    "dinov2_vitl14_pretrain.pth",
    "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    1_217_586_395,
    "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
    "Apache-2.0",
    "DINOv2 ViT-L/14 of FD-DINOv2",
)
CLIP_VITL14 = Weights(
    "ViT-L-14.pt",
    "https://openaipublic.azureedge.net/clip/models/"
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
    932_768_134,
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    "MIT",
    "OpenAI's CLIP ViT-L/14, with QuickGELU: aesthetic score, CLIP score, colours of GenEval",
)
_LAION = "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
AESTHETIC_V2 = Weights(
    "sac+logos+ava1-l14-linearMSE.pth",
    f"{_LAION}sac%2Blogos%2Bava1-l14-linearMSE.pth",
    3_714_759,
    "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    "Apache-2.0",
    "the aesthetic score of papers: head on CLIP ViT-L/14",
)
AESTHETIC_V1 = Weights(
    "sa_0_4_vit_l_14_linear.pth",
    "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth",
    4_071,
    "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba",
    "MIT",
    "the older linear head on CLIP ViT-L/14, on another scale",
)
IMAGE_REWARD = Weights(
    "ImageReward.pt",
    "https://huggingface.co/zai-org/ImageReward/resolve/main/ImageReward.pt",
    None,
    "",
    "Apache-2.0",
    "ImageReward-v1.0; needs the vocabulary of bert-base-uncased beside it",
)
HPS_V2 = Weights(
    "HPS_v2_compressed.pt",
    "https://huggingface.co/xswu/HPSv2/resolve/main/HPS_v2_compressed.pt",
    None,
    "",
    "Apache-2.0",
    "HPS v2.0, which HPS v2.1 cannot be compared with",
)
HPS_V21 = Weights(
    "HPS_v2.1_compressed.pt",
    "https://huggingface.co/xswu/HPSv2/resolve/main/HPS_v2.1_compressed.pt",
    None,
    "",
    "Apache-2.0",
    "HPS v2.1, which HPS v2.0 cannot be compared with",
)
GENEVAL_DETECTOR = Weights(
    "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth",
    "https://download.openmmlab.com/mmdetection/v2.0/mask2former/mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco/"
    "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth",
    None,
    "743b7d99",
    "Apache-2.0",
    "the official detector of GenEval, for mmdet 2",
)
LPIPS_ALEXNET = Weights(
    "alexnet-owt-7be5be79.pth",
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    244_408_911,
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    "BSD-3-Clause",
    "trunk of LPIPS (alex)",
)
LPIPS_VGG16 = Weights(
    "vgg16-397923af.pth",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    553_433_881,
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    "BSD-3-Clause",
    "trunk of LPIPS (vgg)",
)
ALL = (
    INCEPTION,
    DINOV2_VITL14,
    CLIP_VITL14,
    AESTHETIC_V2,
    AESTHETIC_V1,
    IMAGE_REWARD,
    HPS_V2,
    HPS_V21,
    GENEVAL_DETECTOR,
    LPIPS_ALEXNET,
    LPIPS_VGG16,
)
