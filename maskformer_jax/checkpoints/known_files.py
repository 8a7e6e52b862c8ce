"""The SHA-256 of published files of weights, where it is known."""

import hashlib

from etils import epath

from maskformer_jax.errors import UserError

# torchvision and DINOv3 state the first eight digits in the names of their files, which are those of torch.hub; the
# rest, and DINOv2's, is what several public repositories state alike that check their downloads.
SHA256 = {
    # torchvision, ImageNet-1k: V1 and V2
    "resnet50-0676ba61.pth": "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
    "resnet50-11ad3fa6.pth": "11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca",
    "resnet101-63fe2227.pth": "63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a",
    "resnet101-cd907fc2.pth": "cd907fc2a0de2292b2ba2b27d2216bc672d84632d1cf20058d01c0c03b5e020e",
    # DINOv2 with registers
    "dinov2_vits14_reg4_pretrain.pth": "f433177089a681826f849f194ece3bb48f4d63fb38d32fc837e3dc7a4e5641fb",
    "dinov2_vitb14_reg4_pretrain.pth": "73182a088cf94833c94b1666d1c99e02fe87e2007bff57b564fb6206e25dba71",
    "dinov2_vitl14_reg4_pretrain.pth": "36e4deffbaef061a2576705b0c36f93621e2ae20bf6274694821b0b492551b51",
    "dinov2_vitg14_reg4_pretrain.pth": "746ecb8c6301c645c5c855be91687d274587d6e48fdaec4a729753160b34a283",
    # DINOv3
    "dinov3_vits16_pretrain_lvd1689m-08c60483.pth": "08c60483bc63c04f533611e34bf70b120eedb7240f469bc16e9e20bf344b941d",
    "dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth": "73cec8be7427c8655ceced13ce62f6e20a1fa90d1b4d4a550df17a1144081a7c",
    "dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth": "8aa4cbddda325040fc78db2c272754af6ebe8ff2c55f6ec4f1964d8890f66035",
}


def check(path: epath.Path, content: bytes) -> None:
    """Raises UserError for a file that has the name of a published one, and not its content."""
    expected = SHA256.get(path.name)
    if expected is None:
        return
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise UserError(
            f"{path}: its SHA-256 is {found}, and that of the published file of this name {expected}: it was damaged "
            "on its way, or is another file. Download it again. If it is your own file, give it another name."
        )
