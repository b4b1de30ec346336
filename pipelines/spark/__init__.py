"""The same command on Spark: the job server, the workers and the cluster."""
