"""What a bug report needs to know: versions, devices, what is missing, where caches lie (`rlhf env`)."""
