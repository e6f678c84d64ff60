"""Train a network.

CPU or one GPU   python train.py fit -c configs/quickstart.yaml
an override      python train.py fit -c configs/denoiser/small.yaml --data.global_batch 32
8 GPUs           python train.py fit -c configs/denoiser/mirnet_s.yaml -c configs/trainer/ddp.yaml
2 nodes          torchrun --nnodes 2 --nproc_per_node 8 --rdzv_endpoint HOST:29500 train.py fit
                 -c configs/denoiser/mirnet_s.yaml -c configs/trainer/ddp.yaml
                 --trainer.num_nodes 2                        (one line)
again            the same command resumes; python train.py fit --help lists every option
"""

import sys

from lit_restore.io import signals

if __name__ == "__main__":
    signals.install()  # before the imports that take seconds
    from lit_restore.cli.train import main

    sys.exit(main())
