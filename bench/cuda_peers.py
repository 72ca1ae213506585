# SPDX-License-Identifier: Apache-2.0
"""Times of PyTorch's routines on the current CUDA device, to stand beside bench_cuda's.

    python3 cuda_peers.py

Prints name and milliseconds, the median of the calls after a first one. What a published script
of SVD-LLM runs for a matrix is `published`: Cholesky, two inverses, a dense SVD, three products.
"""
import statistics
import time

import torch

SIZES = ((4096, 4096), (4096, 1024), (11008, 4096))


def milliseconds(call, repeats=3):
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def report(name, call, repeats=3):
    try:
        print(f"{name:32s} {milliseconds(call, repeats):10.2f} ms", flush=True)
    except (RuntimeError, torch.linalg.LinAlgError) as error:
        print(f"{name:32s} failed: {str(error).splitlines()[0]}", flush=True)


def published(w, gram):
    s = torch.linalg.cholesky(gram)
    inverse = torch.linalg.inv(s)
    u, sigma, vt = torch.linalg.svd(w @ s, full_matrices=False)
    rank = int(0.8 * w.shape[0] * w.shape[1] / sum(w.shape))
    root = sigma[:rank].sqrt()
    return u[:, :rank] * root, (root[:, None] * vt[:rank]) @ inverse


def main():
    print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name())
    torch.manual_seed(0)
    for kind, dtype in (("float32", torch.float32), ("float64", torch.float64),
                        ("bfloat16", torch.bfloat16)):
        a = torch.randn(4096, 4096, device="cuda").to(dtype)
        report(f"product/{kind}/4096", lambda a=a: a @ a, 10)
    torch.backends.cuda.matmul.allow_tf32 = True
    a = torch.randn(4096, 4096, device="cuda")
    report("product/tf32/4096", lambda: a @ a, 10)
    torch.backends.cuda.matmul.allow_tf32 = False
    for n in (1024, 4096):
        x = torch.randn(n, 2 * n, device="cuda", dtype=torch.float64)
        h = x @ x.T
        report(f"eigh/float64/{n}", lambda h=h: torch.linalg.eigh(h))
    for m, n in SIZES:
        w = torch.randn(m, n, device="cuda")
        report(f"gesvd/{m}x{n}", lambda w=w: torch.linalg.svd(w, False, driver="gesvd"), 1)
        report(f"gesvdj/{m}x{n}", lambda w=w: torch.linalg.svd(w, False, driver="gesvdj"), 1)
        x = torch.randn(n, 2 * n, device="cuda")
        report(f"published/{m}x{n}", lambda w=w, g=x @ x.T: published(w, g), 1)


if __name__ == "__main__":
    main()
