"""What the types of all documents that pnc writes are made of."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Natural = Annotated[int, msgspec.Meta(ge=0)]
Kind = Literal["NCHW", "NHWC", "NLC", "NC"]
Label = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]


class Strict(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    pass


class KnownAs(Strict, frozen=True):
    """A clone class ``name``, of whose ``images`` the target by itself gives this ``share`` to its
    own class ``label``: they may be the same class."""

    name: Label
    label: Label
    share: float
    images: Natural
