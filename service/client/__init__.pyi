from .api import OptipfairClient as OptipfairClient
from .errors import (
    ClientError as ClientError,
    DownloadError as DownloadError,
    RefusedError as RefusedError,
    UnreachableError as UnreachableError,
)
