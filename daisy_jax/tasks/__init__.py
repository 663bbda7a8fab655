"""The downstream tasks: which corpus, which head, which loss, which measure."""
