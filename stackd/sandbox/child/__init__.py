"""What runs inside: the zygote and the processes it forks. The standard library only: there is nothing else in there."""
