"""Files that are there as a whole or not at all, and that are read only if they are what they say.

Every file that the program writes is written here, and every file of text, JSON or arrays that it
gets from elsewhere is read here, so that each fault is one line that names the file.
"""

from daisy_jax.whole_files.reading import (
    checked,
    differences,
    files_digest,
    is_inside,
    numbers_of,
    parse_json,
    read_array,
    read_arrays,
    read_json,
    read_numbers,
    read_text,
)
from daisy_jax.whole_files.results import RESULTS, read_results, write_results
from daisy_jax.whole_files.tensors import (
    TENSORS,
    arrays_digest,
    contiguous,
    read_folder,
    read_tensors,
    write_folder,
)
from daisy_jax.whole_files.writing import (
    cache_folder,
    is_unused,
    is_written_to,
    json_text,
    whole_files,
    whole_folder,
    write_json,
    write_text,
)

__all__ = [
    "RESULTS",
    "TENSORS",
    "arrays_digest",
    "cache_folder",
    "checked",
    "contiguous",
    "differences",
    "files_digest",
    "is_inside",
    "is_unused",
    "is_written_to",
    "json_text",
    "numbers_of",
    "parse_json",
    "read_array",
    "read_arrays",
    "read_folder",
    "read_json",
    "read_numbers",
    "read_results",
    "read_tensors",
    "read_text",
    "whole_files",
    "whole_folder",
    "write_folder",
    "write_json",
    "write_results",
    "write_text",
]
