"""Ray: the cluster, sharding in tasks, training and scoring on workers, submitted jobs."""
