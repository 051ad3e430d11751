"""Starts moto with tags that are looked up by their resource.

moto looks at every tag of the account for each instance, whenever a list is filtered by a tag: with hundreds of
instances one such call takes seconds. What it answers stays the same.
"""

from moto.ec2.models.core import TaggedEC2Resource
from moto.ec2.utils import EC2_PREFIX_TO_RESOURCE, get_prefix
from moto.server import main


def get_tags(resource):
    if not resource.id:
        return []
    kind = EC2_PREFIX_TO_RESOURCE.get(get_prefix(resource.id), "")
    # A copy: requests are served by several threads.
    tags = resource.ec2_backend.tags.get(resource.id, {}).copy()
    return [
        {"resource_id": resource.id, "key": key, "value": value, "resource_type": kind}
        for key, value in tags.items()
    ]


TaggedEC2Resource.get_tags = get_tags
main()
