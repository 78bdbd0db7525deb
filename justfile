# What is done often. The gate is .ci/run; this file only calls it.

default:
    @just --list

# The gate
check:
    bash .ci/run

# The main job on a built-in default
compare *arguments:
    cargo run --release -- compare {{arguments}}

# This machine's ceilings, and every mechanism beside them
bench *arguments:
    cargo run --release -- bench {{arguments}}

# Regard against PyTorch (and Candle, Burn), see bench/peers/README.md
peers *arguments:
    python3 bench/peers/torch_peer.py {{arguments}}

# The files of golden/, written by PyTorch: --check compares and writes nothing
golden *arguments:
    python3 golden/exact.py {{arguments}}
    python3 golden/rows.py {{arguments}}
    python3 golden/nats.py {{arguments}}
    python3 golden/clustered.py {{arguments}}
    python3 golden/linear.py {{arguments}}
    python3 golden/reduce.py {{arguments}}
    python3 golden/vq.py {{arguments}}
    python3 golden/hyper.py {{arguments}}
