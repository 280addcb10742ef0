"""Whether an error says that memory ran out. Loads no library, so that the command can ask before there is one."""

import re


def lacks_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's and NumPy's error, or one of torch's, which are of one kind with many others and
    differ by device and system.

    >>> lacks_memory(MemoryError()), lacks_memory(RuntimeError("not enough memory: you tried to allocate 4096 bytes"))
    (True, True)
    >>> lacks_memory(RuntimeError("shapes cannot be multiplied"))
    False
    """
    said = r"out of memory|not enough memory|can't allocate memory|tried to allocate|_STATUS_ALLOC_FAILED"
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and re.search(said, str(error), re.IGNORECASE) is not None
    )
