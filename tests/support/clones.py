"""Clones under other names, without making them anew."""

from msgspec.structs import replace

from pnc_cli.files.clone_file import open_clone, write_clone
from pnc_cli.files.header import read_header
from pnc_cli.network.tensors import raw_tensor, read_tensors


def named(clone, name, folder):
    """The file of ``clone`` in ``folder``, where it is called ``name``."""
    old, header = open_clone(clone), read_header(clone)
    tensors = {n: raw_tensor(t) for n, t in read_tensors(clone, header, header.tensors).items()}
    path = folder / f"{name}.safetensors"
    write_clone(path, replace(old.manifest, name=name), tensors)
    return path
