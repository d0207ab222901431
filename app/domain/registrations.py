"""What callers ask of checkpoints, uploads and models: bodies as frozen values that refuse unknown fields."""

from typing import Literal

from pydantic import Field

from app.domain.catalog import MAX_MODELS
from app.domain.identifiers import Name, ReferenceText
from app.domain.requests import Request, Tags, Uri

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
WEIGHTS_SUFFIX = ".safetensors"
CONVERT_ADVICE = (
    "Convert it where you trust it: AutoModel.from_pretrained(folder).save_pretrained(new_folder), which writes"
    " safetensors; then register the new folder."
)


class UploadRequest(Request):
    """A checkpoint whose files will be sent."""

    name: Name = Field(description="It becomes this name's next version.")
    task: Name | None = Field(default=None, description="What it was fine-tuned on.")
    base_checkpoint: ReferenceText | None = Field(default=None, description="What it was fine-tuned from.")
    tags: Tags = Field(default_factory=dict)


class CheckpointRequest(UploadRequest):
    """A checkpoint that lies somewhere the service can read."""

    uri: Uri = Field(description="file:///folder or s3://bucket/prefix; also of one .safetensors file.")
    storage: Literal["reference", "copy"] = Field(
        default="reference", description="reference: read where it lies, checked at every use. copy: kept in the store."
    )


class CheckpointChange(Request):
    """What may be changed of a checkpoint; what is left out stays."""

    task: Name | None = None
    tags: Tags = Field(default_factory=dict, description="All tags; those left out are removed.")


class CompatibilityRequest(Request):
    """Checkpoints whose tensors are compared with the base model's, or with the first model's without one."""

    base_model: ReferenceText | None = None
    models: list[ReferenceText] = Field(min_length=1, max_length=MAX_MODELS)


class AliasRequest(Request):
    """The version that an alias shall name."""

    version: int = Field(ge=1, le=2**53)
