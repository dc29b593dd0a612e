"""Ray: the cluster, sharding as tasks, training and scoring on workers, jobs."""
