"""Credentials in URLs: refused where they are read, masked where something is told.

A URL of a store or a corpus is written to logs, records and errors, so it must not hold secrets.
"""

import re

SECRETS = re.compile(
    r"(?<=://)[^/@\s'\"]*:[^/@\s'\"]*(?=@)|"
    r"(?P<name>[?&](?:X-Amz-(?:Signature|Credential|Security-Token)|X-Goog-(?:Signature|Credential)|"
    r"AWSAccessKeyId|GoogleAccessId|Signature|Expires|sig|se|sp|sv|access_token|token|key|secret|"
    r"password)=)[^&\s'\")]+",
    re.IGNORECASE,
)


def refuse_secrets(url: str, key: str) -> None:
    """Raises StorageError where a URL holds credentials; `key` is its key path in the YAML."""
    if "://" in url and SECRETS.search(url):
        from storage.schema import StorageError  # `assay --help` should not pay for pyarrow

        raise StorageError(
            f"{key}: found credentials in {masked(url)}, expected a URL without them: it is "
            "written to logs and files. Take them out, and set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY or AWS_PROFILE, for gs:// GOOGLE_APPLICATION_CREDENTIALS, for "
            "https:// a line in ~/.netrc."
        )


def masked(text: str) -> str:
    """The text with stars in place of credentials and signatures in URLs."""
    return SECRETS.sub(lambda found: f"{found['name'] or ''}***", text)
