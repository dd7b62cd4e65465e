"""Pictures of a bucket of S3, or of any store with its interface."""

import io
from functools import partial

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from .source import SUFFIXES, Candidate, Source, SourceError, Unreadable, suffix


class S3Source(Source):
    """Objects below a prefix whose names have a picture's suffix or none.

    Credentials, region and endpoint are those of boto3: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and so
    on, its configuration files, or the role of the machine.
    """

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
        """The objects as S3 lists them, a thousand a request."""
        self.left_out = 0
        pages = self.client.get_paginator("list_objects_v2")
        try:
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix):
                yield from page.get("Contents", [])
        except (BotoCoreError, ClientError) as error:
            raise SourceError(f"cannot list {self.name}: {error}") from error

    def read(self, key):
        """The bytes of an object; a connection that breaks is tried again.

        Raises `Unreadable` where this object is gone or forbidden, `SourceError` where the store fails.
        """
        target = io.BytesIO()
        # The loader has threads already.
        transfer = TransferConfig(use_threads=False)
        try:
            self.client.download_fileobj(self.bucket, key, target, Config=transfer)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in (403, 404):
                raise Unreadable(str(error)) from error
            raise SourceError(f"cannot read s3://{self.bucket}/{key}: {error}") from error
        except BotoCoreError as error:
            raise SourceError(f"cannot read s3://{self.bucket}/{key}: {error}") from error
        return target.getvalue()
