"""The machine under everything: errors, disk, memory, network, files of strangers, worker processes, trackers."""
