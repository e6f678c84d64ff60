"""The LightningModules: what is trained, with which loss, and no more."""
