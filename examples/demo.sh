#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs what is missing, builds and runs the demonstration. Fails on any failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/build.sh

bash scripts/install_dependencies.sh build
configure
compile 01_compress_matrix

"$build_dir/bin/01_compress_matrix"
