"""What is measured against the floor."""

# Name, resource of wshd, options of wsload, target. The target is a ratio to the floor; where the floor cannot do it
# (it does not compress) or where a ratio says little (memory), it is the number itself.
WORKLOADS = [
    ("64 conn, 20 B", "/echo", "--connections 64 --size 20", 1.03),
    ("64 conn, 20 B, depth 16", "/echo", "--connections 64 --size 20 --pipeline 16", 0.90),
    ("64 conn, 1 KiB", "/echo", "--connections 64 --size 1024", 1.03),
    ("16 conn, 64 KiB binary", "/echo", "--connections 16 --size 65536", 1.00),
    ("16 conn, 64 KiB text", "/echo", "--connections 16 --size 65536 --utf8", 1.20),
    ("4 conn, 1 MiB", "/echo", "--connections 4 --size 1048576", 0.95),
    ("churn", "/echo", "--connections 16 --size 20 --churn", 1.10),
    ("blocking, 64 conn, 20 B", "/echo_blocking", "--connections 64 --size 20", 2.50),
    ("deflate, 64 conn, 1 KiB text", "/echo", "--connections 64 --size 1024 --text --deflate", 45.0),
    ("idle, bytes per connection", "/echo", "--connections 10000 --idle", 256.0),
]


def number_of(run):
    """What is compared: microseconds of CPU per message or connection, or bytes per idle connection."""
    if run["mode"] == "idle":
        return run["pss_per_conn"]
    return run["server_cpu_us_per_conn" if run["mode"] == "churn" else "server_cpu_us_per_msg"]
