"""Pictures of a bucket of S3, or of any store with its interface."""

from functools import partial

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from .source import SUFFIXES, Candidate, Source, SourceError, Unreadable, suffix

# Of reading one object; boto3 tries again only until an answer begins.
ATTEMPTS = 3


class S3Source(Source):
    """Objects below a prefix whose names have a picture's suffix or none.

    Credentials, region and endpoint are those of boto3: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and so
    on, its configuration files, or the role of the machine.
    """

    tagged = True
    page_size = 1000
    """Objects in one answer of the store, which is the most that S3 gives."""

    def __init__(self, url, endpoint_url=None, connections=8):
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not url.startswith("s3://") or not bucket:
            raise SourceError(f"{url} is not of the form s3://bucket/prefix")
        self.bucket, self.prefix = bucket, prefix
        self.name = url
        config = Config(max_pool_connections=connections, retries={"mode": "standard"})
        try:
            self.client = boto3.client("s3", endpoint_url=endpoint_url or None, config=config)
        except (BotoCoreError, ValueError) as error:
            raise SourceError(f"cannot use S3: {error}") from error

    def __iter__(self):
        for entry in self.objects():
            key = entry["Key"]
            if key.endswith("/"):
                continue
            if suffix(key) not in SUFFIXES | {""}:
                self.left_out += 1
                continue
            yield Candidate(
                name=key,
                read=partial(self.read, key),
                size=entry["Size"],
                etag=entry["ETag"].strip('"'),
            )

    def objects(self):
        """The objects as S3 lists them, page by page."""
        self.left_out = 0
        pages = self.client.get_paginator("list_objects_v2")
        try:
            for page in pages.paginate(
                Bucket=self.bucket,
                Prefix=self.prefix,
                PaginationConfig={"PageSize": self.page_size},
            ):
                yield from page.get("Contents", [])
        except (BotoCoreError, ClientError) as error:
            raise SourceError(f"cannot list {self.name}: {error}") from error

    def read(self, key):
        """The bytes of an object; where the connection breaks, they are asked for again.

        Raises `Unreadable` where this object is gone or forbidden, `SourceError` where the store
        fails.
        """
        where = f"s3://{self.bucket}/{key}"
        for attempt in range(ATTEMPTS):
            try:
                return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] in (403, 404):
                    raise Unreadable(str(error)) from error
                raise SourceError(f"cannot read {where}: {error}") from error
            except BotoCoreError as error:
                if attempt == ATTEMPTS - 1:
                    raise SourceError(f"cannot read {where}: {error}") from error
